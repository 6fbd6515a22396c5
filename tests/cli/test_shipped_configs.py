"""Every YAML under configs/ is a test: all resolve, every debug.yaml trains, saves, exports and reads back."""

import json

import pytest
from transformers import AutoModel, AutoTokenizer

from launch.config import resolve
from tests.runs import PROJECT, launch, metrics

CONFIGS = sorted((PROJECT / "configs").glob("*/*.yaml"))
METHODS = sorted({path.parent for path in CONFIGS if (path.parent / "debug.yaml").exists()})
DEBUGS = [folder / "debug.yaml" for folder in METHODS]


def words(path) -> list[str]:
    """Return a command line for a config; an overlay stands behind a run that it can change."""
    text = path.read_text()
    if path.parent.name == "claims":
        pytest.skip("read by `launch claim`, tested there")
    if path.parent in METHODS and ("class:" in text or "extends:" in text):
        return ["--config", str(path)]
    base = path.parent if path.parent in METHODS else PROJECT / "configs" / "electra"
    return ["--config", str(base / "debug.yaml"), "--config", str(path)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_config_resolves(path):
    resolved = resolve(words(path), command="fit")
    assert resolved.get("trainer.max_steps") > 0 and resolved.get("seed") is not None


def test_as_released_sets_every_released_form():
    released = resolve(words(PROJECT / "configs/electra/as_released.yaml")).values["model"]
    clean = resolve(["--config", str(PROJECT / "configs/electra/debug.yaml")]).values["model"]
    changed = {name: value for name, value in released.items() if value != clean[name]}
    assert changed == {
        "masking": "with_replacement",
        "sampler": "gumbel",
        "optimizer": "as_released",
        "schedule": "multiplied",
    }
    assert released["mask_share"] == 0.85 and released["adam_epsilon"] == 1e-6


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("small", (12, 256, 4, 128, 128, 0.15, 128, 5e-4, 1_000_000)),
        ("base", (12, 768, 12, 768, 512, 0.15, 256, 2e-4, 766_000)),
        ("large", (24, 1024, 16, 1024, 512, 0.25, 2048, 2e-4, 400_000)),
    ],
)
def test_paper_sizes(name, sizes):
    found = resolve(["--config", str(PROJECT / f"configs/electra/{name}.yaml")])
    keys = ("model.num_layers", "model.hidden_size", "model.num_heads", "model.embedding_size", "data.sequence_length")
    keys += ("model.mask_fraction", "data.global_batch_size", "model.learning_rate", "trainer.max_steps")
    assert tuple(found.get(key) for key in keys) == sizes
    assert found.get("data.tokenizer.train.vocab_size") == 30522 and found.get("model.warmup_steps") == 10000


@pytest.mark.parametrize("path", DEBUGS, ids=lambda path: path.parent.name)
def test_debug_config_keeps_its_shape(path):
    found = resolve(["--config", str(path)])
    steps, save = found.get("trainer.max_steps"), found.get("callbacks.checkpoint.every_n_steps")
    assert steps >= 8 and found.get("trainer.log_every_n_steps") == 1
    assert (steps - 1) // save >= 2, "two saves before the last step"
    assert found.get("data.global_batch_size") % (4 * found.get("data.micro_batch_size")) == 0


@pytest.mark.parametrize("overlay", [None, pytest.param("as_released", marks=pytest.mark.slow)])
def test_electra_debug_trains_validates_tests_and_exports(tmp_path, overlay):
    given = ["--config", "configs/electra/debug.yaml", f"--run.dir={tmp_path / 'run'}"]
    given += ["--config", f"configs/electra/{overlay}.yaml"] if overlay else []
    output = launch("fit", *given)
    assert "68,345" in output and "step 8 of 8" in output
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert {"val/auc", "val/recall", "val/precision", "val/sampled_accuracy"} <= lines[-1].keys()
    if overlay is None:  # what is configured now holds, whatever the checkpoint was made with
        output = launch(
            "fit", *given, "--trainer.max_steps=10", "--model.schedule=constant", "--model.learning_rate=2e-3"
        )
        assert "model.learning_rate" in output and "going on after step 8" in output
        assert [line["opt/lr"] for line in metrics(tmp_path / "run")][8:] == [2e-3, 2e-3]
    launch("test", *given)
    assert 0 <= json.loads((tmp_path / "run" / "test.json").read_text())["test/auc"] <= 1
    launch("export", str(tmp_path / "run"), "--out", str(tmp_path / "hf"))
    for part in ("discriminator", "generator"):
        model, tokenizer = (c.from_pretrained(tmp_path / "hf" / part) for c in (AutoModel, AutoTokenizer))
        hidden = model(**tokenizer("A real sentence.", return_tensors="pt")).last_hidden_state
        assert hidden.shape[0] == 1 and hidden.shape[2] == (32 if part == "discriminator" else 16)
