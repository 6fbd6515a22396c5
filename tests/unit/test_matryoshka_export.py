"""Exported cells: what sentence-transformers and transformers read out of them, their cards, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from lightning_modules.core import sentence_folder
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.encoders import final_norm
from lightning_modules.core.sentence_form import Form
from lightning_modules.core.sentence_reading import read
from lightning_modules.matryoshka2d import MatryoshkaEncoder
from lightning_modules.matryoshka2d import export as cuts
from lightning_modules.matryoshka2d.grid import Costs, Grid, csv_of
from lightning_modules.matryoshka2d.modes import settings
from lightning_modules.matryoshka2d.module import Matryoshka2d
from lightning_modules.matryoshka2d.record import add_costs, record_of
from tests.embedders import LENGTH, TEXTS, cell, method_of, run_folder

sentence_transformers = pytest.importorskip("sentence_transformers")
FAMILIES = [
    ("bert", "mean"), ("roberta", "cls"), ("distilbert", "weighted_mean"), ("modernbert", "mean"), ("mpnet", "mean"),
    ("llama", "last"), ("gpt2", "last"), ("gpt2", "weighted_mean"),
]  # fmt: skip


def opened(folder: Path) -> "sentence_transformers.SentenceTransformer":
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.mark.parametrize(("family", "pooling"), FAMILIES)
def test_sentence_transformers_gives_the_cell_of_the_grid(family: str, pooling: str, tmp_path: Path) -> None:
    method, tokenizer = method_of(family, tmp_path / "source", pooling=pooling)
    texts = [*TEXTS, *([] if family in ("llama", "gpt2") else [""])]
    run = run_folder(tmp_path / "run")
    for layers, dim in ((3, 32), (2, 12), (1, 8)):
        folder = tmp_path / f"{layers}x{dim}"
        told = method.export(folder, tokenizer, run, 9, layers, dim)
        assert "vectors that sentence-transformers reads out of it equal the run's own" in told
        model = opened(folder)
        wanted = cell(method, tokenizer, texts, layers, dim)
        for size in (1, 3, 32):
            found = model.encode(texts, batch_size=size)
            assert found.shape == (len(texts), dim)
            assert abs(found - wanted).max() <= 1e-5
        assert len(np.unique(wanted.round(4), axis=0)) == len(texts) - 1, "other texts, other vectors"
        assert model.max_seq_length == LENGTH and model.get_embedding_dimension() == dim
        _is_bare(folder, method, layers)


def _is_bare(folder: Path, method: Matryoshka2d, layers: int) -> None:
    options = json.loads((folder / "sentence_bert_config.json").read_text())["model_args"]
    network, info = AutoModel.from_pretrained(folder, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert network.config.num_hidden_layers == layers
    whole = method.model.encoder.network
    assert network.state_dict().keys() < whole.state_dict().keys() or layers == 3
    if norm := final_norm(whole):
        assert torch.equal(getattr(network, norm).weight, getattr(whole, norm).weight)
    stock = opened(folder)[0].auto_model
    assert getattr(stock, "pooler", None) is None, "no weights are made up"


@pytest.mark.parametrize(("family", "pooling"), [*FAMILIES[:3], *FAMILIES[5:]])
def test_what_the_card_says_to_do_gives_the_same_vectors(family: str, pooling: str, tmp_path: Path) -> None:
    method, tokenizer = method_of(family, tmp_path / "source", pooling=pooling)
    prompts = {"anchor": "q: ", "positive": "d: "} if family == "roberta" else None
    run = run_folder(tmp_path / "run", source={"path": "pairs.csv", "prompts": prompts})
    method.export(tmp_path / "out", tokenizer, run, 9, 2, 12)
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)
    assert len(blocks) == 2
    texts = ["a text", "another one"]
    wanted = cell(method, tokenizer, [("q: " if prompts else "") + text for text in texts], 2, 12)
    for block in blocks:
        names: dict = {}
        exec(block.replace("FOLDER", str(tmp_path / "out")), names)
        assert abs(np.asarray(names["vectors"]) - wanted).max() <= 1e-5


def test_no_token_to_pad_with_is_found_one(tmp_path: Path) -> None:
    method, tokenizer = method_of("gpt2", tmp_path / "source", pooling="mean")
    assert not tokenizer.all_special_tokens
    method.export(tmp_path / "out", tokenizer, run_folder(tmp_path / "run"), 9)
    kept = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert kept.pad_token_id == 0 and kept.padding_side == "right"
    assert kept(f"a{kept.pad_token}b")["input_ids"] == tokenizer(f"a{kept.pad_token}b")["input_ids"]
    assert tokenizer.pad_token is None, "the caller's own stays as it is"


def test_prompts_go_into_the_folder(tmp_path: Path) -> None:
    method, tokenizer = method_of("bert", tmp_path / "source")
    pairs = {"path": "pairs.csv", "prompts": {"anchor": "query: ", "positive": "passage: ", "negatives": None}}
    run = run_folder(tmp_path / "run", source=pairs)
    method.export(tmp_path / "out", tokenizer, run, 9, 2, 12)
    model = opened(tmp_path / "out")
    assert model.prompts == {"query": "query: ", "document": "passage: "} and model.default_prompt_name is None
    found = model.encode_query(["a fox"]), model.encode_document(["a fox"]), model.encode(["a fox"])
    wanted = cell(method, tokenizer, ["query: a fox", "passage: a fox", "a fox"], 2, 12)
    assert abs(np.concatenate(found) - wanted).max() <= 1e-5


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"source": "pairs.csv"}, {}),
        ({"source": {"path": "p", "prompts": None}}, {}),
        ({"source": {"path": "p", "prompts": {"anchor": "", "positive": ""}}}, {}),
        ({"source": {"path": "p", "prompts": {"anchor": "q "}}}, {"query": "q ", "document": ""}),
        ({"sources": {"a": {"path": "p", "prompts": {"anchor": "q "}}, "b": None}}, {"query": "q ", "document": ""}),
        (
            {"sources": {"a": {"path": "p", "prompts": {"anchor": "q "}}, "b": "p"}},
            {"a_query": "q ", "a_document": "", "b_query": "", "b_document": ""},
        ),
    ],
)  # fmt: skip
def test_prompts_of_sources(data: dict, wanted: dict[str, str], tmp_path: Path) -> None:
    assert record_of(run_folder(tmp_path / "run", **data), 9).prompts == wanted


def test_every_cell_is_written_in_a_folder_of_its_own(tmp_path: Path) -> None:
    method, tokenizer = method_of("bert", tmp_path / "source")
    run = run_folder(tmp_path / "run")
    method.export(tmp_path / "halves", tokenizer, run, 9, all_cells=True)
    assert {it.name for it in (tmp_path / "halves").iterdir()} == {f"{n}x{d}" for n in (1, 2, 3) for d in (8, 16, 32)}
    write_grid(run / "grid" / "step_00000007.csv", (0, 1, 3), (5, 32))
    told = method.export(tmp_path / "grid", tokenizer, run, 9, all_cells=True)
    assert {it.name for it in (tmp_path / "grid").iterdir()} == {"1x5", "1x32", "3x5", "3x32"}, "layer 0 is no model"
    assert told[0] == "warning: width 5 was not trained; this run trained 8, 16, 32"
    wanted = cell(method, tokenizer, TEXTS, 1, 5)
    assert abs(opened(tmp_path / "grid" / "1x5").encode(TEXTS) - wanted).max() <= 1e-5
    card = (tmp_path / "grid" / "1x5" / "README.md").read_text()
    assert "| 1 | **0.1050** | 0.1320 |" in card and card.count("**0.") == 1
    assert "On the validation sets, at step 7, not at this model's step 9." in card
    assert "Note: width 5 was not trained" in card and "Note:" not in (tmp_path / "grid/1x32/README.md").read_text()


def write_grid(file: Path, layers: tuple[int, ...], dims: tuple[int, ...]) -> None:
    """Write a grid in which a value tells its cell."""
    file.parent.mkdir(exist_ok=True)
    values = {(layer, dim): layer / 10 + dim / 1000 for layer in layers for dim in dims}
    file.write_text(csv_of(Grid(layers, dims, {("sts", "mean"): values})))


def test_the_card_shows_the_grid_of_its_own_step_and_what_it_costs(tmp_path: Path) -> None:
    method, tokenizer = method_of("bert", tmp_path / "source")
    run = run_folder(tmp_path / "run", {"init_from": "/home/somebody/secret/bert-tiny"})
    for name, dims in (("step_00000009", (8,)), ("test_step_00000009", (12, 32)), ("test_step_00000011", (8,))):
        write_grid(run / "grid" / f"{name}.csv", (1, 2, 3), dims)
    method.export(tmp_path / "plain", tokenizer, run, 9, 2, 12)
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "On the test sets, at step 9. " in card and "| 2 | **0.2120** | 0.2320 |" in card
    assert "somebody" not in card and "`bert-tiny`" in card and "`pairs.csv`" in card and "where" not in card
    assert "| layers and widths trained | layers 1, 2, 3 at 8, 16, 32 |" in card
    assert "| steps | 9 of 9, 16 examples each |" in card
    size = sum(
        weight.numel() for weight in AutoModel.from_pretrained(tmp_path / "plain", add_pooling_layer=False).parameters()
    )
    assert f"2 of 3 layers, {size:,} parameters" in card
    files = add_costs(run, Costs({1: 1000.4, 2: 512.0}, {2: size}))
    assert {file.name for file in files} == {file.name for file in (run / "grid").iterdir()} and len(files) == 3
    method.export(tmp_path / "costs", tokenizer, run, 9, 2, 12)
    assert f"| 2 | {size:,} | 512 | **0.2120** | 0.2320 |" in (tmp_path / "costs" / "README.md").read_text()


@pytest.mark.parametrize(
    ("mode", "cell", "problem"),
    [
        ("paper", (3, 8), None),
        ("paper", (6, 48), None),
        ("paper", (3, 24), "width 24 was not trained; this run trained 8, 16, 32, 48"),
        ("sentence_transformers", (3, 24), "width 24 was not trained; this run trained 8, 16, 32, 48"),
        ("espresso", (2, 24), None),
        ("espresso", (2, 48), "width 48 was not trained at layer 2; this run trained 24"),
        ("espresso", (6, 48), None),
        ("espresso", (2, 8), "width 8 was not trained at layer 2; this run trained 24"),
        ("matryoshka_1d", (6, 8), None),
        ("matryoshka_1d", (3, 8), "layer 3 was not trained to end the model; this run trained 6"),
        ("plain", (6, 48), None),
        ("plain", (6, 8), "width 8 was not trained; this run trained 48"),
        ("starbucks", (3, 8), None),
        ("starbucks", (3, 16), "width 16 was not trained at layer 3; this run trained 8"),
        ("starbucks", (3, 48), "width 48 was not trained at layer 3; this run trained 8"),
        ("starbucks", (6, 48), None),
    ],
)
def test_cells_that_training_never_saw_are_named(mode: str, cell: tuple[int, int], problem: str | None) -> None:
    assert cuts.not_trained(settings(mode), 6, 48, [cell]) == ([problem] if problem else [])


def test_students_can_be_some_layers_only() -> None:
    some = settings("paper", last_layer=-2, full_width="last")
    assert cuts.trained(some, 4, 32) == {1: {8, 16}, 2: {8, 16}, 4: {8, 16, 32}}
    assert cuts.not_trained(some, 4, 32, [(3, 8), (3, 9), (1, 9), (2, 9)]) == [
        "layer 3 was not trained to end the model; this run trained 1, 2, 4",
        "width 9 was not trained at layer 1; this run trained 8, 16",
        "width 9 was not trained at layer 2; this run trained 8, 16",
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"layers": 0}, "--layers 0: the encoder has 3 layers; give a number from 1 to 3"),
        ({"layers": 4}, "--layers 4: the encoder has 3 layers"),
        ({"dim": 33}, "--dim 33: the encoder's vectors have width 32; give a number from 1 to 32"),
        ({"dim": -1}, "--dim -1: the encoder's vectors have width 32"),
        ({"all_cells": True, "dim": 8}, "--all-cells: writes every cell; leave out --layers and --dim"),
    ],
)
def test_a_cell_that_is_not_there_is_refused_before_a_network_is_built(options, problem, tmp_path: Path) -> None:
    _, tokenizer = method_of("bert", tmp_path)
    method = Matryoshka2d(init_from=str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(problem)):
        method.check_export(tokenizer, **options)
    assert method.model is None


def test_an_export_needs_no_teacher_any_more(tmp_path: Path) -> None:
    whole, tokenizer = method_of("bert", tmp_path / "source")
    method = Matryoshka2d(init_from=str(tmp_path / "source"), fixed_teacher=str(tmp_path / "gone"))
    method.recall(run_folder(tmp_path / "run"))
    method.build(tokenizer, LENGTH)
    assert method.encoder_config(tokenizer).num_hidden_layers == whole.num_layers == 3


def test_a_folder_that_reads_back_differently_is_no_export(tmp_path: Path) -> None:
    method, tokenizer = method_of("bert", tmp_path / "source")
    method.export(tmp_path / "out", tokenizer, run_folder(tmp_path / "run"), 9, 2, 12)
    with torch.no_grad():
        vectors_MD = torch.from_numpy(cell(method, tokenizer, TEXTS, 2, 32))
    assert sentence_folder.prove(tmp_path / "out", TEXTS, vectors_MD)
    for wrong_MD in (vectors_MD.flip(1), vectors_MD.flip(0), vectors_MD + 1e-4 * torch.eye(7, 32)):
        with pytest.raises(RuntimeError, match="sentence-transformers reads other vectors out of it, by up to"):
            sentence_folder.prove(tmp_path / "out", TEXTS, wrong_MD)


def test_what_does_more_than_pool_and_cut_is_not_read(tmp_path: Path) -> None:
    method, tokenizer = method_of("bert", tmp_path / "source")
    folder = tmp_path / "out"
    method.export(folder, tokenizer, run_folder(tmp_path / "run"), 9, 2, 12)
    assert read(folder) == Form("mean", 12, LENGTH, {})
    again = tmp_path / "again"
    opened(folder).save(str(again))  # as this version of sentence-transformers writes it
    assert read(again)[:2] == ("mean", 12)
    texts = [*TEXTS, " ".join(TEXTS * 20)]
    ours, theirs = (MatryoshkaEncoder.from_folder(place, device="cpu") for place in (folder, again))
    assert theirs.max_tokens == ours.max_tokens == LENGTH < theirs.encoder.max_tokens, "it stands in the tokenizer now"
    assert np.abs(theirs.encode(texts) - opened(again).encode(texts)).max() < 1e-5
    told = folder / "config_sentence_transformers.json"
    kept = json.loads(told.read_text())
    told.write_text(json.dumps(kept | {"prompts": {"q": "the "}, "default_prompt_name": "q", "truncate_dim": 4}))
    theirs, default = opened(folder).encode(TEXTS), MatryoshkaEncoder.from_folder(folder, device="cpu")
    assert default.dim == 4 and not np.allclose(default.encode(TEXTS), default.encode(TEXTS, prompt=""), atol=1e-3)
    assert np.abs(default.encode(TEXTS) - theirs / np.linalg.norm(theirs, axis=1, keepdims=True)).max() < 1e-5
    told.write_text(json.dumps(kept))
    edits = {
        "modules.json": (lambda it: [*it, {"path": "4_CNN", "type": "x.CNN"}], "has a module x.CNN, which is not kept"),
        "2_Dense/config.json": (lambda it: it | {"activation_function": "x.Own"}, "has the activation x.Own, which is"),
        "sentence_bert_config.json": (
            lambda it: it | {"transformer_task": "fill-mask"},
            "transformer_task = 'fill-mask'",
        ),
        "1_Pooling/config.json": (lambda it: it | {"pooling_mode_own": True}, "pooling_mode_own is not known"),
    }
    for name, (edit, problem) in edits.items():
        kept = (folder / name).read_text()
        (folder / name).write_text(json.dumps(edit(json.loads(kept))))
        with pytest.raises(CheckpointError, match=problem):
            read(folder)
        (folder / name).write_text(kept)
    with pytest.raises(CheckpointError, match="is no folder of sentence-transformers that can be read"):
        read(tmp_path / "source")
    damage = {
        "config.json": ("{", "its tokenizer cannot be opened .* config file at"),
        "model.safetensors": ("{", "no run, folder or hub model can be read there"),
        "tokenizer.json": ("{", "its tokenizer cannot be opened"),
        "sentence_bert_config.json": ('{"max_seq_length": -3}', r"that can be read \(ValueError\('max_seq_length = -3"),
        "2_Dense/model.safetensors": ("{", "the weights of 2_Dense cannot be read"),
    }
    for name, (content, problem) in damage.items():
        kept = (folder / name).read_bytes()
        (folder / name).write_text(content)
        with pytest.raises(CheckpointError, match=rf"^{re.escape(str(folder))}: .*{problem}"):
            MatryoshkaEncoder.from_folder(folder)
        (folder / name).write_bytes(kept)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="its tokenizer"):
        MatryoshkaEncoder.from_folder(folder)


def test_a_run_whose_folder_is_not_whole_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not the whole folder of a run"):
        record_of(tmp_path, 9)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(CheckpointError, match="is not the whole folder of a run"):
        record_of(tmp_path, 9)
    with pytest.raises(CheckpointError, match=r"grid: holds no grid; run `test` with callbacks.grid there first"):
        add_costs(tmp_path, Costs())
    with pytest.raises(CheckpointError, match="nope: there is no such folder"):
        record_of(tmp_path / "nope", 9)
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match="from_folder opens an exported one"):
        record_of(tmp_path, 9)


def test_without_sentence_transformers_it_says_that_no_vector_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, tokenizer = method_of("bert", tmp_path / "source")
    monkeypatch.setattr(sentence_folder, "find_spec", lambda name: None)
    told = method.export(tmp_path / "out", tokenizer, run_folder(tmp_path / "run"), 9, 2, 8)
    assert told == ["sentence-transformers is not installed, so no vector was compared"]
    assert abs(opened(tmp_path / "out").encode(TEXTS) - cell(method, tokenizer, TEXTS, 2, 8)).max() <= 1e-5
