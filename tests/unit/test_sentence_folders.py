"""A folder of sentence-transformers is read whole: what is trained further and exported gives the same vectors."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.encoder_sources import ENCODER, form_of
from lightning_modules.core.sentence_form import Form, keep, kept
from lightning_modules.core.sentence_reading import read
from lightning_modules.core.source_files import weights_folder
from lightning_modules.matryoshka2d import MatryoshkaEncoder
from lightning_modules.matryoshka2d.module import Matryoshka2d
from lightning_modules.matryoshka2d.texts import check_texts
from tests.embedders import LENGTH, run_folder, source, tokenizer_of

sentence_transformers = pytest.importorskip("sentence_transformers")
from sentence_transformers.models import LSTM, Dense, Dropout, LayerNorm, Normalize, Pooling, Transformer

POOLINGS = [
    *("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"),
    *(("cls", "mean"), ("mean", "cls", "max"), ("lasttoken", "weightedmean", "mean_sqrt_len_tokens")),
]
TEXTS = ["a quick brown fox", "one", "the fox\tand the dog " * 20, "naïve, café; and so on", "b"]
QUERY, DOCUMENT = "the query ", "a passage "


def st_folder(
    folder: Path, family: str = "bert", pooling: Any = "mean", more: tuple = (), include: bool = True, **options: Any
) -> Path:
    """Write a folder with sentence-transformers itself."""
    source(family, folder / "network")
    torch.manual_seed(9)
    for module in more:
        for weight in module.parameters():
            weight.data += 0.2 * torch.randn_like(weight)
    network = Transformer(str(folder / "network"), max_seq_length=LENGTH)
    if network.tokenizer.pad_token is None:
        network.tokenizer.add_special_tokens({"pad_token": network.tokenizer.convert_ids_to_tokens(0)})
    pool = Pooling(32, pooling_mode=pooling, include_prompt=include)
    model = sentence_transformers.SentenceTransformer(modules=[network, pool, *more], device="cpu", **options)
    model.save(str(folder / "st"))
    return folder / "st"


def opened(folder: Path) -> "sentence_transformers.SentenceTransformer":
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def begun(folder: Path, family: str = "bert", tokenizer: Any = None, **options: Any) -> Matryoshka2d:
    """Return a method whose encoder is that of a folder."""
    method = Matryoshka2d(init_from=str(folder), **options)
    method.build(tokenizer or tokenizer_of(family), LENGTH)
    method.warm_start(str(folder))
    return method.eval()


def exported(method: Matryoshka2d, place: Path, family: str = "bert", **data: Any) -> Path:
    """Export the whole of a method, as of a run."""
    method.export(place / "out", tokenizer_of(family), run_folder(place / "run", **data), 9)
    return place / "out"


def same_vectors(ours: Path, theirs: Path, **options: Any) -> np.ndarray:
    found, wanted = (opened(folder).encode(TEXTS, batch_size=2, **options) for folder in (ours, theirs))
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-6 * max(1.0, np.abs(wanted).max())
    return wanted


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("scaled", [True, False])
def test_every_pooling_is_kept(pooling: Any, scaled: bool, tmp_path: Path) -> None:
    folder = st_folder(tmp_path, pooling=pooling, more=(Normalize(),) if scaled else ())
    out = exported(begun(folder), tmp_path)
    wanted = same_vectors(out, folder)
    assert wanted.shape[1] == 32 * (1 if isinstance(pooling, str) else len(pooling))
    assert np.allclose(np.linalg.norm(wanted, axis=1), 1, atol=1e-5) == scaled
    again = MatryoshkaEncoder.from_folder(folder, device="cpu").encode(TEXTS, normalize=scaled)
    assert np.abs(again - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())


HEADS = {
    "dense": lambda: (Dense(32, 16),),
    "scaled": lambda: (Dense(32, 24, bias=False, activation_function=nn.GELU()), Normalize()),
    "two": lambda: (Dense(32, 48), Dense(48, 20, activation_function=nn.Identity()), Normalize()),
    "residual": lambda: (Dense(32, 32, use_residual=True), Dense(32, 16, use_residual=True)),
    "norm": lambda: (LayerNorm(32), Normalize()),
    "inner": lambda: (Normalize(), Dense(32, 16), Dropout(0.5)),
    "scaled twice": lambda: (Dropout(0.1), Normalize(), Normalize()),
}


@pytest.mark.parametrize("head", HEADS)
def test_what_follows_pooling_is_kept_with_its_weights(head: str, tmp_path: Path) -> None:
    folder = st_folder(tmp_path, more=HEADS[head]())
    method = begun(folder)
    out = exported(method, tmp_path)
    same_vectors(out, folder)
    kinds = [json.loads((place / "modules.json").read_text()) for place in (folder, out)]
    names = [[module["type"].rpartition(".")[2] for module in modules] for modules in kinds]
    assert names[0] == names[1] or head == "scaled twice"
    trained = [name for name, weight in method.named_parameters() if name.startswith("model.head.")]
    assert bool(trained) == (head != "scaled twice"), "its layers are trained"


@pytest.mark.parametrize("family", ["roberta", "distilbert", "modernbert", "mpnet", "llama", "gpt2", "electra"])
def test_every_family_keeps_its_vectors(family: str, tmp_path: Path) -> None:
    folder = st_folder(tmp_path, family, "lasttoken", (Dense(32, 16), Normalize()))
    out = exported(begun(folder, family), tmp_path, family)
    same_vectors(out, folder)


def test_prompts_and_the_default_one_are_kept(tmp_path: Path) -> None:
    prompts = {"query": QUERY, "document": DOCUMENT, "other": "c "}
    folder = st_folder(tmp_path, prompts=prompts, default_prompt_name="query")
    out = exported(begun(folder), tmp_path)
    plain, default = same_vectors(out, folder, prompt=""), same_vectors(out, folder)
    for name, prompt in prompts.items():
        assert np.array_equal(same_vectors(out, folder, prompt_name=name), same_vectors(out, folder, prompt=prompt))
    assert np.abs(plain - default).max() > 1e-3
    assert np.array_equal(default, same_vectors(out, folder, prompt_name="query"))
    place, own = tmp_path / "own", {"path": "x", "prompts": {"anchor": "mine ", "positive": ""}}
    place.mkdir()
    told = exported(begun(folder), place, source=own)
    assert opened(told).prompts == {"query": "mine ", "document": "", "other": "c "}, "those of the data come first"


@pytest.mark.parametrize("pooling", POOLINGS[:7])
def test_a_prompt_that_does_not_count_in_pooling_still_does_not(pooling: Any, tmp_path: Path) -> None:
    prompts = {"query": QUERY, "document": DOCUMENT}
    folder = st_folder(tmp_path, pooling=pooling, include=False, prompts=prompts)
    out = exported(begun(folder), tmp_path)
    wanted = same_vectors(out, folder, prompt_name="query")
    found = MatryoshkaEncoder.from_folder(out, device="cpu").encode(TEXTS, prompt_name="query", normalize=False)
    assert np.abs(found - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())
    counted = begun(folder, drop_modules=["include_prompt"])
    assert counted.form.include_prompt and not form_of(str(folder)).include_prompt


def test_the_first_layout_is_followed(tmp_path: Path) -> None:
    folder = st_folder(tmp_path, pooling="cls", more=(Dense(32, 16),))
    early = tmp_path / "early"
    shutil.copytree(folder, early)
    inner = early / "0_Transformer"
    inner.mkdir()
    for file in [it for it in early.iterdir() if it.is_file()]:
        if file.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            file.rename(inner / file.name)
    modules = json.loads((early / "modules.json").read_text())
    modules = [
        module | {"type": f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"} for module in modules
    ]
    modules[0]["path"] = "0_Transformer"
    (early / "modules.json").write_text(json.dumps(modules))
    dense = early / modules[2]["path"]
    from safetensors.torch import load_file

    torch.save(load_file(dense / "model.safetensors"), dense / "pytorch_model.bin")  # as it was before version 3
    (dense / "model.safetensors").unlink()
    assert weights_folder(str(early)) == str(inner)
    same_vectors(exported(begun(early), tmp_path), folder)
    assert MatryoshkaEncoder.from_folder(early, device="cpu").dim == 16
    with pytest.warns(UserWarning, match="lies in .*early, whose pooling and prompts are not read; name that"):
        assert form_of(str(inner)) is None


@pytest.mark.parametrize("scaled", [True, False])
def test_a_cut_stays_a_cut(scaled: bool, tmp_path: Path) -> None:
    folder = st_folder(tmp_path, more=(Normalize(),) if scaled else ())
    method = begun(folder)
    method.export(tmp_path / "cut", tokenizer_of("bert"), run_folder(tmp_path / "run"), 9, 2, 12)
    again = begun(tmp_path / "cut")
    assert (again.width, again.model.encoder.width, len(again.model.head)) == (12, 32, 0)
    same_vectors(exported(again, tmp_path), tmp_path / "cut")


def test_coordinates_that_are_left_out_after_scaling_stay_out(tmp_path: Path) -> None:
    folder = st_folder(tmp_path, more=(Normalize(),), truncate_dim=8)
    method = begun(folder)
    same_vectors(exported(method, tmp_path), folder)
    method.export(tmp_path / "cell", tokenizer_of("bert"), run_folder(tmp_path / "run"), 9, dim=16)
    assert opened(tmp_path / "cell").encode(TEXTS).shape == (5, 16), "a flag says it anew"


def test_longest_texts(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = st_folder(tmp_path)
    method = begun(folder)
    assert method.form.max_tokens == LENGTH
    for length, kept_length in ((LENGTH - 8, LENGTH), (LENGTH, LENGTH), (LENGTH + 8, LENGTH + 8)):
        recwarn.clear()
        check_texts(method.form, "it", SimpleNamespace(sequence_length=length), goes_on=False)
        told = [str(warning.message) for warning in recwarn]
        assert any(f"it cuts texts at {LENGTH} tokens" in line for line in told) == (length > LENGTH)
        place = tmp_path / str(length)
        place.mkdir()
        assert opened(exported(method, place, sequence_length=length)).max_seq_length == kept_length


def test_prompts_that_are_not_trained_with_are_told_and_ones_that_cannot_be_refused(tmp_path: Path) -> None:
    form = Form("mean", 32, None, {"query": QUERY, "document": ""}, include_prompt=False)
    without = SimpleNamespace(sequence_length=9, sources={"": SimpleNamespace(prompts=None), "taken out": None})
    with pytest.warns(UserWarning, match=r"has prompts \(query 'the query '\), but texts are trained without any"):
        check_texts(form, "it", without, goes_on=False)
    prompted = SimpleNamespace(sequence_length=9, sources={"": SimpleNamespace(prompts={"anchor": "x"})})
    with pytest.raises(CheckpointError, match=r"it: pools without the tokens of a prompt, .*drop_modules: \[incl"):
        check_texts(form, "it", prompted, goes_on=True)


def test_what_is_not_kept_is_refused_and_dropped_by_its_name(tmp_path: Path) -> None:
    folder = st_folder(tmp_path, more=(Dense(32, 16), Normalize()))
    plain = begun(folder, drop_modules=["Dense"])
    assert (plain.width, len(plain.model.head), plain.form.normalize) == (32, 0, True)
    with pytest.raises(CheckpointError, match=r"model.init_from = .*: has no CNN to be left out; it is made of Transf"):
        begun(folder, drop_modules=["CNN"])
    with pytest.raises(
        CheckpointError, match=r"model.drop_modules = \['CNN'\]: .* is no folder of sentence-transformers"
    ):
        begun(tmp_path / "network", drop_modules=["CNN"])
    edits = [
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"x": 1}}}, "processing_kwargs"),
        ("sentence_bert_config.json", {"model_args": {"num_hidden_layers": 1}}, "num_hidden_layers"),
        ("sentence_bert_config.json", {"config_kwargs": {"layer_norm_eps": 1}}, "layer_norm_eps"),
        ("sentence_bert_config.json", {"query_length": 3}, "query_length"),
    ]
    for name, more, word in edits:
        before = (folder / name).read_text()
        (folder / name).write_text(json.dumps(json.loads(before) | more))
        with pytest.raises(
            CheckpointError, match=rf"^model.init_from = .*{word} = .*, which is not kept; model.drop_modules"
        ):
            form_of(str(folder))
        assert form_of(str(folder), [word]).dim == 16
        (folder / name).write_text(before)


def test_a_module_between_network_and_pooling_is_refused_and_dropped(tmp_path: Path) -> None:
    source("bert", tmp_path / "network")
    network, between = Transformer(str(tmp_path / "network"), max_seq_length=LENGTH), LSTM(32, 16)
    modules = [network, between, Pooling(32, pooling_mode="max")]
    sentence_transformers.SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "st"))
    with pytest.raises(CheckpointError, match=r"has a module LSTM before pooling, which is not kept; model.drop_m"):
        begun(tmp_path / "st")
    with pytest.warns(UserWarning, match=r"not taken: LSTM \(model.drop_modules\)"):
        assert begun(tmp_path / "st", drop_modules=["LSTM"]).form.pooling == "max"


def test_texts_whose_case_is_lowered_before_the_tokenizer(tmp_path: Path) -> None:
    for family, refused in (("bert", False), ("gpt2", True)):
        folder = st_folder(tmp_path / family, family)
        file = folder / "sentence_bert_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"do_lower_case": True}))
        if refused:
            with pytest.raises(CheckpointError, match="lowers the case of texts before its tokenizer, which"):
                read(folder)
            assert read(folder, ["do_lower_case"]).dim == 32
        else:
            assert read(folder).dim == 32, "its tokenizer does so anyway"


def test_code_in_a_folder_is_not_taken_for_a_stock_module(tmp_path: Path) -> None:
    folder = st_folder(tmp_path, more=(Dense(32, 16),))
    modules = json.loads((folder / "modules.json").read_text())
    for number, name in (
        (0, "begins with own.Transformer"),
        (1, "a module own.Pooling"),
        (2, "a module own.Dense"),
    ):
        changed = [dict(module) for module in modules]
        changed[number]["type"] = f"own.{changed[number]['type'].rpartition('.')[2]}"
        (folder / "modules.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=name):
            read(folder)


def test_another_pooling_is_taken_where_the_configuration_asks_for_it(tmp_path: Path) -> None:
    folder = st_folder(tmp_path, pooling="cls", more=(Dense(32, 16),))
    with pytest.warns(UserWarning, match=r"model.pooling = mean: .* pools by cls"):
        method = begun(folder, pooling="mean")
    assert method.form.pooling == "mean" and read(exported(method, tmp_path)).pooling == "mean"
    with pytest.raises(CheckpointError, match=r"Dense 32 -> 16: takes vectors of width 32, the ones before it have 64"):
        begun(folder, pooling=["mean", "max"])
    whole = begun(st_folder(tmp_path / "other", pooling="cls"), pooling=["mean", "max"])
    assert whole.width == 64


def test_a_run_hands_on_how_its_vectors_are_made(tmp_path: Path) -> None:
    form = Form(("cls", "max"), 64, 40, {"query": "x "}, "query", normalize=False)
    run = run_folder(tmp_path / "run", {"pooling": None}, source={"path": "p", "prompts": {"anchor": "q "}})
    keep(form, run / ENCODER)
    assert kept(run / ENCODER) == form
    step = run / "checkpoints" / "step_00000001"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    assert form_of(str(step)) == form._replace(prompts={"query": "q ", "document": ""})
    (run / ENCODER / "form.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"form\.json: cannot be read"):
        form_of(str(step))
    old = run_folder(tmp_path / "old", {"pooling": "cls"})
    shutil.copytree(run / "checkpoints", old / "checkpoints")
    assert form_of(str(old / "checkpoints" / step.name))[:3] == ("cls", 0, LENGTH), "it kept none"
