import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from datamodules.core.wordpiece import load
from launch.config import resolve
from launch.config.errors import ConfigError
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.encoder_sources import encoder_config, load_encoder
from lightning_modules.core.encoders import Encoder
from lightning_modules.core.warm_start import checkpoint_of, load_weights
from lightning_modules.electra.module import Electra
from tests.embedders import letters_tokenizer, source
from tests.runs import launch
from tests.text import text_batch, word_tokenizer


def electra(seed: int = 0, **options) -> Electra:
    built = Electra(**{"hidden_size": 32, "num_layers": 1, "embedding_size": 16, "max_positions": 32, **options})
    built.seed = seed
    built.build(word_tokenizer(), 32)
    return built


def same(ours: Electra, theirs: Electra) -> bool:
    pairs = zip(ours.named_parameters(), theirs.named_parameters(), strict=True)
    return all(torch.equal(p, q) and name == other for (name, p), (other, q) in pairs)


def test_starts_from_what_export_wrote(tmp_path):
    trained, fresh = electra(1), electra(2)
    trained.export(tmp_path / "hf", word_tokenizer())
    assert not same(trained, fresh)
    fresh.warm_start(str(tmp_path / "hf"))
    assert same(trained, fresh)
    ours, theirs = fresh.model.generator.network, fresh.model.discriminator.network
    assert ours.electra.embeddings is theirs.electra.embeddings, "still tied"


def test_starts_from_a_discriminator_alone(tmp_path):
    trained, fresh = electra(1), electra(2)
    trained.export(tmp_path / "hf", word_tokenizer())
    kept = fresh.model.generator.network.generator_predictions.dense.weight.clone()
    fresh.warm_start(str(tmp_path / "hf" / "discriminator"))
    assert torch.equal(fresh.model.generator.network.generator_predictions.dense.weight, kept)
    state, wanted = (m.model.discriminator.network.state_dict() for m in (fresh, trained))
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("name", "value"), [("num_attention_heads", 2), ("hidden_act", "relu"), ("layer_norm_eps", 0.1)]
)
@pytest.mark.parametrize("part", ["discriminator", "generator"])
def test_a_network_that_computes_otherwise_is_refused(name, value, part, tmp_path):
    """The shapes of its weights are the same."""
    electra(1).export(tmp_path / "hf", word_tokenizer())
    file = tmp_path / "hf" / part / "config.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {name: value}))
    with pytest.raises(CheckpointError, match=rf"{part}: has {name} = {value}, the model built here {told[name]}"):
        electra(2).warm_start(str(tmp_path / "hf"))


def test_a_run_with_other_heads_is_refused(tmp_path):
    words = ["fit", "--config", "configs/electra/debug.yaml", "--callbacks.validation", "null", "--trainer.max_steps=1"]
    launch(*words, f"--run.dir={tmp_path / 'first'}", "--model.num_heads", "2")
    done = launch(*words, f"--run.dir={tmp_path / 'second'}", f"--model.init_from={tmp_path / 'first'}",
                  "--model.num_heads", "4", code=1)  # fmt: skip
    assert "has model.num_heads = 2, the model built here 4" in done


def test_a_generator_that_begins_fresh_is_said_and_one_that_is_named_is_taken(tmp_path):
    trained, fresh = electra(1), electra(2)
    trained.export(tmp_path / "hf", word_tokenizer())
    alone, generator = str(tmp_path / "hf" / "discriminator"), str(tmp_path / "hf" / "generator")
    told = (
        r"is a discriminator alone; the generator begins with fresh weights, but for the embeddings .*init_generator_f"
    )
    with pytest.warns(UserWarning, match=told):
        fresh.warm_start(alone)
    both = electra(2, init_generator_from=generator)
    both.warm_start(alone)
    assert same(trained, both)
    both.init_generator_from = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"^model\.init_generator_from = .*nowhere: there is no such folder"):
        both.warm_start(alone)
    both.init_generator_from = generator
    with pytest.raises(CheckpointError, match=r"^model\.init_generator_from = .*hf brings a generator; leave one out"):
        both.warm_start(str(tmp_path / "hf"))
    (tmp_path / "hf" / "generator").rename(tmp_path / "moved")
    both.init_generator_from = str(tmp_path / "moved")
    both.warm_start(str(tmp_path / "hf"))
    assert same(trained, both)


@pytest.mark.parametrize("tying", ["embeddings", "all", "none"])
def test_a_generator_with_other_shared_weights_is_refused(tying, tmp_path):
    sizes = {"generator_width": 1.0} if tying == "all" else {}
    ours, other = electra(1, tying=tying, **sizes), electra(3, tying=tying, **sizes)
    ours.export(tmp_path / "ours", word_tokenizer())
    other.export(tmp_path / "other", word_tokenizer())
    fresh = electra(2, tying=tying, init_generator_from=str(tmp_path / "other" / "generator"), **sizes)
    if tying == "none":
        fresh.warm_start(str(tmp_path / "ours" / "discriminator"))
        found, wanted = (it.model.generator.network.state_dict() for it in (fresh, other))
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        return
    with pytest.raises(CheckpointError, match=r"has another electra\..* than .*, and model.tying = \w+ shares it"):
        fresh.warm_start(str(tmp_path / "ours" / "discriminator"))


def test_a_masked_language_model_starts_from_one(tmp_path):
    trained, fresh = electra(1, task="mlm"), electra(2, task="mlm")
    trained.export(tmp_path / "hf", word_tokenizer())
    fresh.warm_start(str(tmp_path / "hf"))
    assert same(trained, fresh)


def test_what_does_not_fit_is_named(tmp_path):
    electra(1).export(tmp_path / "hf", word_tokenizer())
    with pytest.raises(CheckpointError, match=r"has shape \[100, 16\], the model built here has \[100, 8\]"):
        electra(embedding_size=8).warm_start(str(tmp_path / "hf"))
    with pytest.raises(CheckpointError, match=r"also has electra\.encoder\.layer\.0.*\(16 names differ\)"):
        small = electra().model.discriminator.network
        del small.electra.encoder.layer[0]
        load_weights(small, dict(electra().model.discriminator.network.named_parameters()), "other")
    with pytest.raises(CheckpointError, match=r"model\.init_from = .*nowhere: there is no such folder"):
        electra().warm_start(str(tmp_path / "nowhere"))


def test_weights_are_never_made_up(tmp_path):
    electra(1).model.discriminator.network.electra.save_pretrained(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match=r"holds no discriminator_predictions\.dense\.bias \(4 weights"):
        electra().warm_start(str(tmp_path / "encoder"))


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        checkpoint_of(str(tmp_path / "run"))
    assert checkpoint_of(str(tmp_path)) is None


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_pickled_objects_are_refused_and_never_made(tmp_path):
    folder = tmp_path / "hf"
    electra(1).export(folder, word_tokenizer())
    for part in folder.iterdir():
        (part / "model.safetensors").unlink()
    for content in (Malicious(tmp_path / "made"), None):
        for part in folder.iterdir():
            torch.save({"x": content}, part / "pytorch_model.bin")
            if content is None:
                (part / "pytorch_model.bin").write_bytes(b"not weights")
        for start in (
            electra().warm_start,
            lambda source: load_encoder(electra().model.discriminator.network.electra, source),
        ):
            with pytest.raises(CheckpointError, match="no run, folder or hub model can be read there: ") as error:
                start(str(folder))
            assert "\n" not in str(error.value) and not (tmp_path / "made").exists()


def test_an_encoder_without_some_of_its_weights_is_refused_and_not_made_up(tmp_path, capfd):
    source("bert", tmp_path)
    config = encoder_config(str(tmp_path), letters_tokenizer())
    load_encoder(Encoder(config).network, str(tmp_path))
    assert "pooler" not in capfd.readouterr().err, "the pooler, which is made up, is not taken"
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    lacks = r"holds no encoder\.layer\.1\.output\.dense\.weight \(1 weights are missing\)"
    with pytest.raises(CheckpointError, match=lacks):
        load_encoder(Encoder(config).network, str(tmp_path))


def test_code_that_lies_beside_weights_is_never_run(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    described = {"model_type": "other", "auto_map": {"AutoConfig": "other.Other", "AutoModel": "other.Other"}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "other.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Other: pass\n")
    with pytest.raises(CheckpointError, match="no run, folder or hub model can be read there: "):
        encoder_config(str(tmp_path), word_tokenizer())
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_run_that_goes_on_does_not_need_the_run_it_started_from(tmp_path):
    base = ["fit", "--config", "configs/electra/debug.yaml", "--callbacks.validation", "null"]
    launch(*base, "--trainer.max_steps=1", f"--run.dir={tmp_path / 'first'}")
    words = [*base, f"--run.dir={tmp_path / 'second'}", f"--model.init_from={tmp_path / 'first'}"]
    launch(*words, "--trainer.max_steps=2")
    (tmp_path / "first").rename(tmp_path / "moved")
    assert "going on after step 2" in launch(*words, "--trainer.max_steps=3")


def test_the_encoder_of_a_run_must_be_of_a_known_family_too(tmp_path):
    run = tmp_path / "run"
    words = ["fit", "--config", "configs/matryoshka2d/debug.yaml", "--callbacks.validation", "null"]
    launch(*words, "--callbacks.grid", "null", "--trainer.max_steps=1", f"--run.dir={run}")
    tokenizer = load(str(run / "tokenizer"))
    assert encoder_config(str(run), tokenizer, ("electra", "bert")).model_type == "bert"
    with pytest.raises(CheckpointError, match="is of the family bert; give one of electra"):
        encoder_config(str(run), tokenizer, ("electra",))


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ([], "needs the discriminator in model.init_from"),
        (["--model.init_from", "x", "--model.task", "mlm"], "no generator is trained; leave it out"),
        (["--model.init_from", "x", "--model.generator", "uniform"], "no generator is trained; leave it out"),
    ],
)
def test_a_generator_that_would_not_be_read_is_refused(more, problem):
    words = ["--config", "configs/electra/debug.yaml", "--model.init_generator_from", "g", *more]
    with pytest.raises(ConfigError, match=rf"^model.init_generator_from = g \(.*\): {problem}"):
        resolve(words)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_what_a_config_wishes_for_in_running_it_changes_nothing(family, tmp_path):
    """A kernel of the hub would be code of somebody's."""
    tokenizer = source(family, tmp_path)
    plain, batch = Encoder(encoder_config(str(tmp_path), tokenizer)), text_batch([7, 5, 3])
    batch["ids_T"] = batch["ids_T"].clamp(min=5, max=len(tokenizer) - 1)
    load_encoder(plain.network, str(tmp_path))
    told = json.loads((tmp_path / "config.json").read_text())
    wishes = {"attn_implementation": "evil/kernel", "_attn_implementation": "flash_attention_2", "return_dict": False}
    (tmp_path / "config.json").write_text(json.dumps(told | wishes | {"output_hidden_states": True, "use_cache": True}))
    other = Encoder(encoder_config(str(tmp_path), tokenizer))
    load_encoder(other.network, str(tmp_path))
    with torch.no_grad():
        for ours, theirs in zip(plain.eval()(batch, [1, 2]), other.eval()(batch, [1, 2]), strict=True):
            assert torch.equal(ours, theirs)


def test_pairs_of_texts_go_through_a_network_of_one_type(tmp_path):
    from lightning_modules.core.attention import encode

    tokenizer = source("bert", tmp_path)
    config = encoder_config(str(tmp_path), tokenizer)
    config.type_vocab_size, batch = 1, text_batch([12, 9])
    batch["ids_T"] = batch["ids_T"].clamp(min=5, max=len(tokenizer) - 1)
    assert batch["type_T"].any()
    network = AutoModel.from_config(config, attn_implementation="flat").eval()
    assert encode(network, batch["ids_T"], batch).shape == (21, config.hidden_size)
