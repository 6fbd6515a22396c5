"""The objectives of 2D Matryoshka over pooled outputs of an encoder's layers, as functions of tensors.

Shape suffixes: C columns of a pair or tuple, B examples of the global batch, R rows (texts), D width, K width of a cut,
T tokens. X_n^d below is the first d coordinates of the pooled output of layer n.

A step draws layers and widths (`draw`), turns them into a table of weighted terms (`plan`) and evaluates it
(`objective`). Every rank holds all vectors and gets its share of each term: the shares add up over the ranks.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.core.batches import NO_TEXT
from lightning_modules.core.keyed import mix
from lightning_modules.core.pair_losses import in_full_precision, unit
from lightning_modules.core.precision import widened
from lightning_modules.matryoshka2d.modes import Settings, default_pairs, default_widths, depth_weight

LAYERS, WIDTHS = 11, 12  # streams of randomness


class Draw(NamedTuple):
    """The layers and widths of one step, beside full width: of the last layer, and of each student."""

    widths: tuple[int, ...]
    students: tuple[tuple[int, tuple[int, ...]], ...] = ()  # (layer, its widths)
    key: int = 0  # of the step's randomised decompositions


class Cell(NamedTuple):
    """One term: what it is, of which layer and width, and its weight."""

    name: str  # last, last_cut, shallow, shallow_cut (base losses), kl or alignment
    layer: int
    width: int
    weight: float


class Part(NamedTuple):
    """This rank's share of a mean over the terms of one name, and the weight of that mean in the loss."""

    value: Tensor
    weight: float


def draw(settings: Settings, num_layers: int, width: int, seed: int, step: int) -> Draw:
    """Draw the layers and widths of a step, uniformly without replacement; a function of (seed, step) alone.

    Raises:
        ValueError: no layer or width to draw from, or one that the encoder has not.
    """
    pairs = _pairs(settings, num_layers, width) if settings.fixed_pairs else ()
    candidates = sorted(layer for layer, _ in pairs if layer < num_layers)
    if not settings.fixed_pairs:
        candidates = list(range(settings.first_layer, num_layers + settings.last_layer + 1))
    if settings.layers_per_step and not candidates:
        raise ValueError(f"an encoder of {num_layers} layers has no layer below the last to train")
    layers = _take(candidates, settings.layers_per_step, seed, LAYERS, step)

    def widths(layer: int) -> tuple[int, ...]:
        if settings.fixed_pairs:
            stands_there = settings.full_width != "none"  # the whole of the last layer, beside what is drawn
            return tuple(d for n, d in pairs if n == layer and not (stands_there and (n, d) == (num_layers, width)))
        stream = 0 if settings.shared_widths else layer + 1
        return _take(sorted(offered, reverse=True), settings.widths_per_step, seed, WIDTHS, step, stream)

    offered = default_widths(settings, width) if settings.widths_per_step and not settings.fixed_pairs else ()
    if settings.full_width == "none" and not widths(num_layers):
        raise ValueError("no loss of pairs is on the last layer; set full_width to last, or let it have a width")
    students = tuple((layer, widths(layer)) for layer in layers)
    return Draw(widths(num_layers), students, mix(seed, step))


def _take(candidates: Iterable[int], count: int, *keys: int) -> tuple[int, ...]:
    """Take `count` candidates (-1: all), those that a keyed shuffle puts first, in their own order."""
    candidates = tuple(candidates)
    if count == -1 or count >= len(candidates):
        return candidates
    first = set(sorted(range(len(candidates)), key=lambda place: mix(*keys, place))[:count])
    return tuple(value for place, value in enumerate(candidates) if place in first)


def _pairs(settings: Settings, num_layers: int, width: int) -> tuple[tuple[int, int], ...]:
    pairs = settings.pairs or default_pairs(num_layers, width)
    if wrong := [pair for pair in pairs if not (0 < pair[0] <= num_layers and 0 < pair[1] <= width)]:
        raise ValueError(f"pairs: {list(wrong[0])} is outside of {num_layers} layers of width {width}")
    if len({layer for layer, _ in pairs}) < len(pairs):
        raise ValueError("pairs: a layer stands in two of them")
    return pairs


def layers_needed(drawn: Draw, num_layers: int) -> tuple[int, ...]:
    """Return the layers whose pooled outputs a step needs, in ascending order; the last is always among them."""
    return tuple(sorted({num_layers, *(layer for layer, _ in drawn.students)}))


def plan(settings: Settings, drawn: Draw, num_layers: int, width: int) -> list[Cell]:
    """Return the terms of a step with their weights; the README has the equation of each mode."""
    cells = _base_cells(settings, "last", num_layers, drawn.widths, width, settings.last_weight)
    if settings.alignment != "none":
        cells += [Cell("alignment", num_layers, d, settings.last_weight) for d in drawn.widths]
    for layer, widths in drawn.students:
        place = layer - settings.first_layer + 1
        count = len(drawn.students)
        weight = settings.student_weight * depth_weight(settings.weighting, place, layer)
        weight /= 1 if settings.average == "none" else count
        cells += _base_cells(settings, "shallow", layer, widths, width, weight)
        if settings.alignment != "none":
            cells += [Cell("alignment", layer, d, weight) for d in widths]
        if settings.kl_weight > 0 and settings.kl_temperature > 0:
            weight = settings.kl_weight * depth_weight(settings.kl_weighting, place, layer)
            weight *= settings.kl_temperature**settings.kl_power / (count if settings.average == "all" else 1)
            cells += [Cell("kl", layer, d, weight) for d in (widths if settings.kl_width == "drawn" else (width,))]
    return cells


def _base_cells(
    settings: Settings, name: str, layer: int, widths: tuple[int, ...], full: int, weight: float
) -> list[Cell]:
    has_full = settings.full_width == "all" or (settings.full_width == "last" and name == "last")
    weights = dict(zip(settings.widths or (), settings.width_weights or (), strict=False))
    cut = [Cell(f"{name}_cut", layer, d, weight * weights.get(d, 1.0)) for d in widths]
    return [Cell(name, layer, full, weight)] * has_full + cut


def objective(
    stack: Mapping[int, Tensor],
    drawn: Draw,
    base: Callable[[Tensor], Tensor],
    own: slice,
    settings: Settings,
    teacher_CBD: Tensor | None = None,
    basis: Callable[[Tensor, int, int], Tensor] | None = None,
    num_texts: Tensor | None = None,
) -> dict[str, Part]:
    """Return this rank's share of a step's loss terms, by name; a step of one mode always has the same names.

    `stack` maps the needed layers to pooled outputs [C, B, D], the deepest being the last layer; `base` is the base
    loss of a table [C, B, d] (this rank's share); `own` are the examples that this rank answers for. `teacher_CBD`
    replaces the last layer as target of the divergence. `basis(x_RD, k, layer)` replaces Espresso's decomposition.
    `num_texts` counts the texts of the tables where some are not there, which are vectors of zeros.

    Raises:
        ValueError: a teacher of another width.
    """
    stack = {layer: widened(table_CBD) for layer, table_CBD in stack.items()}
    last = max(stack)
    if teacher_CBD is not None:
        target_CBD = widened(teacher_CBD).detach()
    else:
        target_CBD = stack[last].detach() if settings.detach_teacher else stack[last]
    if target_CBD.shape != stack[last].shape:
        raise ValueError(f"the teacher's vectors {list(target_CBD.shape)} are not like {list(stack[last].shape)}")
    rows = target_CBD.shape[0] * target_CBD.shape[1] if num_texts is None else num_texts

    def value(cell: Cell) -> Tensor:
        table_CBK = stack[cell.layer][..., : cell.width]
        if cell.name == "kl":
            student_RK, target_RK = (x[:, own, : cell.width].flatten(0, 1) for x in (table_CBK, target_CBD))
            return divergence(student_RK, target_RK, settings.kl_temperature) / rows
        if cell.name == "alignment":
            find = basis or _basis(settings.alignment, drawn.key)
            temperature = settings.alignment_temperature
            return alignment(stack[cell.layer], cell.width, own, temperature, find, cell.layer, rows)
        return base(unit(table_CBK) if settings.normalise else table_CBK)

    found: dict[str, list[tuple[float, Tensor]]] = {}
    for cell in plan(settings, drawn, last, target_CBD.shape[-1]):
        found.setdefault(cell.name, []).append((cell.weight, value(cell)))
    return {name: _mean(terms) for name, terms in found.items()}


def _mean(terms: list[tuple[float, Tensor]]) -> Part:
    """Weigh the terms of one name into their mean; terms of weight 0 stay in, so that all weights get a gradient."""
    total = sum(weight for weight, _ in terms)
    shares = [weight / total if total else 1 / len(terms) for weight, _ in terms]
    return Part(sum(share * value for share, (_, value) in zip(shares, terms, strict=True)), total)


def total(parts: Mapping[str, Part]) -> Tensor:
    """Return the loss: the sum over its parts of weight * value."""
    return sum(part.weight * part.value for part in parts.values())


@in_full_precision
def divergence(student_RK: Tensor, teacher_RK: Tensor, temperature: float) -> Tensor:
    """Return the sum over rows of KL(softmax(teacher / T) || softmax(student / T)), of vectors taken as logits.

    The vectors are raw: of vectors of length one the softmax over hundreds of coordinates is nearly uniform.
    """
    logs = (F.log_softmax(x_RK / temperature, -1) for x_RK in (student_RK, widened(teacher_RK)))
    return F.kl_div(*logs, reduction="sum", log_target=True)


def token_alignment(hidden_TD: Tensor, teacher_TD: Tensor, num_texts: int) -> Tensor:
    """Return AnglE's alignment with a fixed teacher: the divergence at every token of the last layer, over the texts.

    The texts are those of the global batch, so that micro-batches and ranks add up. (The authors' code counts tokens of
    padding as well.)
    """
    return divergence(hidden_TD, teacher_TD.detach(), 1.0) / num_texts


@in_full_precision
def alignment(
    table_CBD: Tensor,
    width: int,
    own: slice,
    temperature: float,
    basis: Callable[[Tensor, int, int], Tensor],
    layer: int,
    num_texts: int | Tensor | None = None,
) -> Tensor:
    """Return Espresso's A(X) = MSE(X^k, P) + T KL(P || X^k), P = X (U_k S_k); no gradient passes through P."""
    num_texts = table_CBD.shape[0] * table_CBD.shape[1] if num_texts is None else num_texts
    with torch.no_grad():
        basis_DK = basis(table_CBD.flatten(0, 1), width, layer)
        target_RK = table_CBD[:, own].flatten(0, 1) @ basis_DK
    found_RK = table_CBD[:, own, :width].flatten(0, 1)
    squares = (found_RK - target_RK).square().sum() / width
    kl = divergence(found_RK, target_RK, temperature)
    return (squares + temperature * kl) / num_texts


def dependence(x_RD: Tensor) -> Tensor:
    """Return Espresso's matrix of dependence [D, D]: softmax over rows of X^T X / sqrt(D), uncentred."""
    matrix_DD = torch.softmax(x_RD.T @ x_RD / x_RD.shape[1] ** 0.5, -1)
    return matrix_DD.nan_to_num()  # decompositions stop with an error; a run that diverged has a policy for its loss


def exact_basis(x_RD: Tensor, width: int) -> Tensor:
    """Return U_k S_k [D, k] of the dependence matrix A, in float64, from the eigenvectors of A A^T.

    Each column's largest coordinate is positive. It needs no more than R = 1 rows: A is D x D.

    Raises:
        ValueError: k is larger than D.
    """
    _refuse_wider(x_RD, width)
    matrix_DD = dependence(x_RD.double())
    squares_D, vectors_DD = torch.linalg.eigh(matrix_DD @ matrix_DD.T)  # ascending
    vectors_DK = vectors_DD[:, -width:].flip(1)
    signs_1K = vectors_DK.gather(0, vectors_DK.abs().argmax(0, keepdim=True)).sign()
    return (vectors_DK * signs_1K * squares_D[-width:].flip(0).clamp(min=0).sqrt()).to(x_RD.dtype)


def random_basis(x_RD: Tensor, width: int, key: int) -> Tensor:
    """Return U_k S_k as the authors do, by randomised SVD (Halko et al., 2011), seeded by the key.

    Raises:
        ValueError: k is larger than D.
    """
    _refuse_wider(x_RD, width)
    devices = [x_RD.device] if x_RD.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(key >> 1)
        vectors_DK, values_K, _ = torch.svd_lowrank(dependence(x_RD), q=width)
    return vectors_DK * values_K


def _refuse_wider(x_RD: Tensor, width: int) -> None:
    if width > x_RD.shape[1]:
        raise ValueError(f"vectors of width {x_RD.shape[1]} cannot be compressed to {width}")


def _basis(kind: str, key: int) -> Callable[[Tensor, int, int], Tensor]:
    if kind == "random":
        return lambda x_RD, width, layer: random_basis(x_RD, width, mix(key, layer))
    return lambda x_RD, width, layer: exact_basis(x_RD, width)


def laid_out(vectors_SBD: Tensor, slot_B: Tensor, slots: int) -> Tensor:
    """Put the vectors of texts into their slots [S, slots, D]; zeros stand for a text that is not there."""
    if len(slot_B) == slots:
        return vectors_SBD[:, slot_B.argsort()]
    return vectors_SBD.new_zeros(len(vectors_SBD), slots, vectors_SBD.shape[2]).index_copy(1, slot_B, vectors_SBD)


def first_occurrences(key_CB: Tensor, own: slice) -> tuple[Tensor, slice]:
    """Leave out examples with a text that was there before, as AnglE's collator of February 2024 does.

    Texts of an example that is left out count as seen, up to the one that was there before. Returns the rows that stay,
    int64, and the place of the own rows among them.
    """
    seen: set[int] = set()
    stays = [_is_new(texts, seen) for texts in key_CB.T.tolist()]
    rows = torch.tensor([row for row, stay in enumerate(stays) if stay], dtype=torch.int64, device=key_CB.device)
    return rows, slice(sum(stays[: own.start]), sum(stays[: own.stop]))


def _is_new(texts: list[int], seen: set[int]) -> bool:
    for text in texts:
        if text in seen:
            return False
        if text != NO_TEXT:
            seen.add(text)
    return True
