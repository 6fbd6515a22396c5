"""From a batch of texts to the terms of the loss: the module against the objective on vectors of single texts."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertModel

from datamodules.core.batches import NO_TEXT, PairBatch
from datamodules.core.loader import lay_out
from datamodules.core.tasks import Sts
from lightning_modules.core.base import TRAIN
from lightning_modules.core.base_loss import LossOptions
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.keyed import seed_generators
from lightning_modules.core.pair_losses import Pairs, angle, info_nce
from lightning_modules.matryoshka2d import objective
from lightning_modules.matryoshka2d.encoder import flat_batch
from lightning_modules.matryoshka2d.grid import Choice
from lightning_modules.matryoshka2d.module import Matryoshka2d
from lightning_modules.matryoshka2d.teacher import same_as_begun
from tests.embedders import method_of, source

CPU = torch.device("cpu")
Examples = list[list[list[int]]]  # [examples][columns] texts


def pair_batch(first: int, examples: Examples, labels: list[float] | None = None) -> PairBatch:
    """Lay the texts of some examples out as the loader does, longest first; `first` is their place in the order."""
    columns = [list(column) for column in zip(*examples, strict=True)]
    texts = [text for column in columns for text in column]
    order = np.array(sorted((slot for slot in range(len(texts)) if texts[slot]), key=lambda slot: -len(texts[slot])))
    lens = np.array([len(texts[slot]) for slot in order])
    places = np.array([first + slot % len(examples) for slot in order])
    laid = lay_out(np.concatenate([texts[slot] for slot in order]), lens, lens, places, np.zeros(64, bool))
    return {
        **laid,
        "slot_B": torch.from_numpy(order),
        "num_columns": len(columns),
        "key_CP": torch.tensor([[hash(tuple(text)) if text else NO_TEXT for text in column] for column in columns]),
        "label_P": torch.tensor(labels or [1.0] * len(examples)),
        "has_labels": labels is not None,
        "is_ragged": not all(texts),
        "source": "train",
    }


def examples_of(count: int, columns: int) -> Examples:
    """Draw texts of unequal lengths; the longest is not always in the same column."""
    draws = np.random.default_rng(7)
    return [
        [[2, *draws.integers(5, 30, draws.integers(1, 9)).tolist(), 3] for _ in range(columns)] for _ in range(count)
    ]


def stack_of(method: Matryoshka2d, examples: Examples) -> dict[int, Tensor]:
    """Encode every text alone: by layer a table [C, B, D], with zeros for what is not there."""
    nothing = torch.zeros(4, 32)
    found = [
        [method.model.vectors(flat_batch([text], CPU), range(4))[:, 0] if text else nothing for text in row]
        for row in examples
    ]
    table_LCBD = torch.stack([torch.stack(row) for row in found]).permute(2, 1, 0, 3)
    return dict(enumerate(table_LCBD))


def terms_of(
    method: Matryoshka2d, examples: Examples, cuts: list[int], labels: list[float] | None = None
) -> dict[str, tuple[Tensor, float]]:
    """Give examples in micro-batches, each of which is compared as the part of one rank; returns sums and weights."""
    method._trainer = SimpleNamespace(global_step=3)
    bounds = np.cumsum([0, *cuts]).tolist()
    slices = [slice(*bounds[n : n + 2]) for n in range(len(cuts))]
    batches = [pair_batch(own.start, examples[own], labels and labels[own]) for own in slices]
    vectors_BX = torch.cat([method.embed(batch).vectors_PX for batch in batches])
    known = [method.known(batch) for batch in batches]
    together = {name: torch.cat([part[name] for part in known]) for name in known[0]}
    found = [method.compare(vectors_BX, together, own, None).terms for own in slices]
    return {name: (sum(terms[name].sum for terms in found), found[0][name].weight) for name in found[0]}


def check(found: dict[str, tuple[Tensor, float]], expected: dict[str, objective.Part], examples: int) -> None:
    assert found.keys() == expected.keys()
    for name, part in expected.items():
        torch.testing.assert_close(found[name][0], part.value * examples, atol=1e-4, rtol=1e-5)
        assert found[name][1] == part.weight and part.value.abs() > 1e-4


@pytest.mark.parametrize("mode", ["paper", "sentence_transformers", "starbucks", "espresso"])
def test_triplets_in_two_micro_batches(mode, tmp_path):
    method, _ = method_of("bert", tmp_path, mode=mode)
    examples, own = examples_of(7, 3), slice(0, 7)
    drawn, stack = objective.draw(method.settings, 3, 32, method.seed, 3), stack_of(method, examples)
    needed = {layer: stack[layer] for layer in objective.layers_needed(drawn, 3)}
    expected = objective.objective(needed, drawn, lambda table: info_nce(table, Pairs(own)), own, method.settings)
    check(terms_of(method, examples, [4, 3]), expected, 7)


@pytest.mark.parametrize("mode", ["paper", "espresso"])
def test_examples_with_different_numbers_of_hard_negatives(mode, tmp_path):
    method, _ = method_of("bert", tmp_path, mode=mode)
    examples, own, there = examples_of(6, 4), slice(0, 6), torch.ones(4, 6, dtype=torch.bool)
    for row, column in ((1, 2), (1, 3), (3, 3), (5, 2)):
        examples[row][column], there[column, row] = [], False
    drawn, stack = objective.draw(method.settings, 3, 32, method.seed, 3), stack_of(method, examples)
    needed = {layer: stack[layer] for layer in objective.layers_needed(drawn, 3)}

    def base(table: Tensor) -> Tensor:
        return info_nce(table, Pairs(own, there_CB=there))

    expected = objective.objective(needed, drawn, base, own, method.settings, num_texts=there.sum())
    # what compares no examples does not mind where texts stand: the 20 of them as a table of two columns
    full, ten = {layer: table[there].unflatten(0, (2, 10)) for layer, table in needed.items()}, slice(0, 10)
    again = objective.objective(full, drawn, lambda table: table.sum(), ten, method.settings)
    free = [name for name in expected if name in ("kl", "alignment")]
    for name in free:
        torch.testing.assert_close(again[name].value, expected[name].value, atol=1e-6, rtol=1e-5)
    assert free, expected.keys()
    found = terms_of(method, examples, [2, 4])
    check(found, expected, 6)
    gradients = [
        torch.autograd.grad(sum(terms), [*method.model.parameters()], allow_unused=True)
        for terms in ([value * weight for value, weight in found.values()], [6 * objective.total(expected)])
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_labels_and_dropped_duplicates_of_the_improved_code(tmp_path):
    method, _ = method_of("bert", tmp_path, mode="improved", as_released=True, loss=LossOptions("angle"))
    examples, labels = examples_of(8, 2), [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    examples[2][1], examples[5][1] = examples[0][0], examples[4][1]  # both left out: one in another column
    stays = [row for row in range(8) if row not in (2, 5)]
    drawn = objective.draw(method.settings, 3, 32, method.seed, 3)
    stack = stack_of(method, [examples[row] for row in stays])
    needed = {layer: stack[layer] for layer in objective.layers_needed(drawn, 3)}
    own, label_B = slice(0, 6), torch.tensor([labels[row] for row in stays])

    def base(table: Tensor) -> Tensor:
        return angle(table, Pairs(own, label_B), 0.0, 30.0, 1.0, angle_tau=20.0, integer_labels=True)

    expected = objective.objective(needed, drawn, base, own, method.settings)
    check(terms_of(method, examples, [3, 3, 2], labels), expected, 8)


# Passes of the encoder, and a fixed teacher


@pytest.mark.parametrize("passes", [1, 2])
def test_with_two_passes_the_student_alone_has_dropout_of_its_own(passes, tmp_path):
    """As the authors' first code: the last layer is of the first pass, the student of the second."""
    method, _ = method_of("bert", tmp_path, objective={"encoder_passes": passes})
    method.train()._trainer = SimpleNamespace(global_step=3)
    batch, runs = pair_batch(5, examples_of(6, 2)), []
    method.model.encoder.register_forward_hook(lambda *_: runs.append(1))
    found_SBD = method._embed_seeded([batch])[0].vectors_PX.permute(1, 2, 0, 3).flatten(1, 2)
    assert len(runs) == passes
    (student, last), in_slots = objective.layers_needed(method.drawn(), 3), batch["slot_B"].argsort()
    seed_generators(method.seed, TRAIN, batch["position"])
    first_SBD = method.model.vectors(batch, [student, last])[:, in_slots]
    seed_generators(method.seed, TRAIN, batch["position"], 2)
    second_SBD = method.model.vectors(batch, [student, last])[:, in_slots]
    expected = torch.stack([(first_SBD if passes == 1 else second_SBD)[0], first_SBD[1]])
    torch.testing.assert_close(found_SBD, expected, atol=1e-6, rtol=0)
    assert ((first_SBD - second_SBD).abs().amax((1, 2)) > 0.01).all(), "dropout differs"


def hidden_by_hand(folder: Path, examples: Examples) -> list[tuple[Tensor, ...]]:
    """Return the hidden states [T, D] of all layers for each text, first all anchors, by transformers alone."""
    network = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    texts = [row[column] for column in range(len(examples[0])) for row in examples]
    with torch.no_grad():
        states = [network(torch.tensor([text]), output_hidden_states=True).hidden_states for text in texts]
    return [tuple(state_1TD[0] for state_1TD in layers) for layers in states]


def kl_by_hand(teacher_RD: Tensor, student_RD: Tensor) -> float:
    p, q = teacher_RD.double().softmax(-1), student_RD.double().softmax(-1)
    return (p * (p.log() - q.log())).sum().item()


@pytest.mark.parametrize("passes", [1, 2])
def test_a_fixed_teacher_is_followed_by_the_student_and_at_every_token_of_the_last_layer(passes, tmp_path):
    source("bert", tmp_path / "teacher")
    teacher = BertModel.from_pretrained(tmp_path / "teacher", add_pooling_layer=False)
    for weight in teacher.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(9))
    teacher.save_pretrained(tmp_path / "teacher")
    options = {"fixed_teacher": str(tmp_path / "teacher"), "objective": {"encoder_passes": passes}}
    method, _ = method_of("bert", tmp_path / "own", **options)
    examples = examples_of(7, 3)
    own, taught = (hidden_by_hand(tmp_path / name, examples) for name in ("own", "teacher"))
    found = terms_of(method, examples, [4, 3])
    (layer, _), count = objective.layers_needed(method.drawn(), 3), 7 * 3
    kl = sum(kl_by_hand(t[3].mean(0), x[layer].mean(0)) for t, x in zip(taught, own, strict=True)) / count
    assert found["kl"][0].item() == pytest.approx(7 * kl, rel=1e-4) and found["kl"][1] == 1 and kl > 0.01
    aligned = [
        method.embed(pair_batch(0, part)).terms.terms["token_alignment"] for part in (examples[:4], examples[4:])
    ]
    wanted = sum(kl_by_hand(t[3], x[3]) for t, x in zip(taught, own, strict=True)) / count
    assert sum(term.sum.item() for term in aligned) == pytest.approx(7 * wanted, rel=1e-4) and wanted > 0.01
    assert [term.count for term in aligned] == [4, 3] and not any(term.weight != 1 for term in aligned)


# What is refused


def test_a_teacher_that_cannot_be_taken_is_called_by_its_own_key(tmp_path):
    method, tokenizer = method_of("bert", tmp_path / "whole", fixed_teacher=str(tmp_path / "whole"))
    assert method._teacher[0].encoder.width == 32
    short, _ = method_of("bert", tmp_path / "short")
    network = short.model.encoder.network
    network.config.max_position_embeddings = 16
    network.embeddings.position_embeddings.weight.data = network.embeddings.position_embeddings.weight[:16].detach()
    network.save_pretrained(tmp_path / "short")
    for name, problem in (("short", "has 16 positions, data.sequence_length is 24"), ("none", "")):
        method.fixed_teacher = str(tmp_path / name)
        with pytest.raises(CheckpointError, match=rf"^model\.fixed_teacher = .*{name}: {problem}"):
            method.build(tokenizer, 24)


def test_a_run_goes_on_with_the_teacher_that_it_began_with(tmp_path):
    method, _ = method_of("bert", tmp_path / "whole", fixed_teacher=str(tmp_path / "whole"))
    (teacher,) = method._teacher
    same_as_begun(teacher, "here", tmp_path, goes_on=False, keeps=True)
    same_as_begun(teacher, "moved", tmp_path, goes_on=True, keeps=True)
    teacher.encoder.network.embeddings.word_embeddings.weight[3, 1] += 1e-6
    with pytest.raises(CheckpointError, match=r"^model\.fixed_teacher = here: has other weights than when .* began"):
        same_as_begun(teacher, "here", tmp_path, goes_on=True, keeps=True)
    same_as_begun(teacher, "here", tmp_path, goes_on=False, keeps=True)
    same_as_begun(teacher, "here", tmp_path, goes_on=True, keeps=True)
    for damaged in ("{", "[]", "{}"):
        (tmp_path / "fixed_teacher.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"fixed_teacher\.json: cannot be read; delete it"):
            same_as_begun(teacher, "here", tmp_path, goes_on=True, keeps=True)


def test_a_batch_of_duplicates_alone_is_named(tmp_path):
    method, _ = method_of("bert", tmp_path, objective={"drop_duplicates": True})
    method._trainer = SimpleNamespace(global_step=0)
    with pytest.raises(CheckpointError, match=r"^model\.objective\.drop_duplicates: nothing is left of a batch"):
        method.compare(torch.ones(3, 2, 2, 32), {"key_BC": torch.ones(3, 2, dtype=torch.int64)}, slice(0, 3), None)


def test_heads_that_do_not_divide_the_width_of_a_source_are_named(tmp_path):
    method, tokenizer = method_of("bert", tmp_path / "source")
    config = json.loads((tmp_path / "source/config.json").read_text())
    (tmp_path / "source/config.json").write_text(json.dumps(config | {"num_attention_heads": 3}))
    method.init_from = method.shape_from = str(tmp_path / "source")
    with pytest.raises(CheckpointError, match="its width 32 cannot be shared by 3 heads"):
        method.build(tokenizer, 24)


def test_what_would_be_judged_is_checked_before_the_first_step(tmp_path):
    method, _ = method_of("bert", tmp_path)
    twice = [Sts("a", *torch.tensor([[0, 1], [1, 0], [0, 1]]))] * 2
    data = SimpleNamespace(parts=[], tasks=lambda split: twice)
    method._trainer = SimpleNamespace(global_step=0, datamodule=data)
    with pytest.raises(CheckpointError, match=r"^task a: the name is taken"):
        method.on_fit_start()
    method.grid_choice = Choice(dims=[64])
    with pytest.raises(CheckpointError, match=r"^callbacks\.grid\.dims: 64 is none of 1 to 32"):
        method.on_fit_start()


def test_starbucks_without_a_term_of_full_width_trains_the_pair_of_the_last_layer(tmp_path):
    changed = {"full_width": "none"}
    method, _ = method_of("bert", tmp_path, mode="starbucks", objective=changed)
    assert method.term_names >= {"last_cut", "shallow_cut"} and "last" not in method.term_names
    with pytest.raises(CheckpointError, match=r"^model\.objective: no loss of pairs is on the last layer"):
        method_of("bert", tmp_path / "b", mode="starbucks", objective=changed | {"pairs": [[1, 8]]})


@pytest.mark.parametrize(("widths", "warns"), [([8, 16], True), ([8, 32], False)])
def test_a_run_that_never_compares_whole_vectors_says_so(widths, warns, tmp_path, recwarn):
    method, _ = method_of("bert", tmp_path, mode="sentence_transformers", objective={"widths": widths})
    method._trainer = SimpleNamespace(global_step=0, datamodule=SimpleNamespace(parts=[], tasks=lambda split: []))
    method.on_fit_start()
    assert any("no loss of pairs is at the full width 32" in str(warning.message) for warning in recwarn) == warns
