"""What a forward pass keeps for the backward pass, from the shapes of a method's modules.

For each row (a token, or a target where a head runs on targets alone): a linear layer keeps its input; what follows it
(attention, activation, normalisation) keeps its output; query, key and value share one input; attention keeps its
result; a dropout keeps its mask. So a layer of BERT's kind, of width D and feed-forward width F, keeps 9 D + 2 F
numbers a token, and 2 D more for masks. Under autocast every linear layer keeps its own bfloat16 copy of its input.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from lightning_modules.core.base import Method
from lightning_modules.core.blocks import blocks

NORMS = (nn.LayerNorm, nn.RMSNorm)


class Pass(NamedTuple):
    """One forward pass: its sequences, all of full length, and how numbers are kept."""

    sequences: int
    length: int
    size: int = 4  # bytes of a number outside of autocast
    mixed: bool = False  # autocast to bfloat16
    on_gpu: bool = False
    recompute: bool = False  # activation checkpointing

    @property
    def tokens(self) -> int:
        """Tokens of the micro-batch."""
        return self.sequences * self.length

    def host(self) -> dict[str, list[int]]:
        """Return the lengths of a micro-batch as a batch has them on the host, three tokens of each being special."""
        return {"lens": [self.length] * self.sequences, "maskable": [self.length - 3] * self.sequences}


class Kept(NamedTuple):
    """Bytes that a group of modules keeps, with the formula."""

    name: str
    bytes: int
    formula: str


def kept(method: Method, run: Pass) -> list[Kept]:
    """List what a forward pass of one micro-batch keeps, and what is in passing at the same time."""
    layers = [layer for layer in blocks(method) if _linears(layer)]
    inside = {id(module) for layer in blocks(method) for module in layer.modules()}
    rows = method.head_rows(run.host())
    found = [*_layers(method, layers, run)]
    for name, module in method.named_modules():
        if id(module) in inside:
            continue
        count = next((count for prefix, count in rows.items() if f"{name}.".startswith(f"{prefix}.")), run.tokens)
        children = [child for child_name, child in module.named_children() if f"{name}.{child_name}" not in rows]
        if name in rows and isinstance(module, nn.Linear):
            children = [module]
        each = _row_bytes(module, children, run) + (_logits(module, run) if name in rows else 0)
        if each:
            found.append(Kept(name.removeprefix("model."), count * each, f"{count:,} rows x {each:,} B"))
    widest = max((linear.out_features for layer in layers for linear in _linears(layer)), default=0)
    number = 2 if run.mixed else run.size
    formula = f"2 x {run.tokens:,} tokens x {widest:,} x {number} B"
    return [*found, Kept("gradients that pass through", 2 * run.tokens * widest * number, formula)]


def _layers(method: Method, layers: list[nn.Module], run: Pass) -> Iterator[Kept]:
    """Give one line to each list of layers; with activation checkpointing only what goes into each layer is kept."""
    lists = [(name, module) for name, module in method.named_modules() if isinstance(module, nn.ModuleList)]
    known = {id(layer) for layer in layers}
    for name, members in lists:
        own = [layer for layer in members if id(layer) in known]
        known -= {id(layer) for layer in own}
        if not own:
            continue
        each = [sum(_row_bytes(module, list(module.children()), run) for module in layer.modules()) for layer in own]
        short = name.removeprefix("model.")
        if run.recompute:
            width = run.size * max(linear.in_features for linear in _linears(own[0])[:1])
            total = run.tokens * (len(own) * width + max(each))
            formula = f"{run.tokens:,} tokens x ({len(own)} layers x {width:,} B + one layer's {max(each):,} B)"
        else:
            total = run.tokens * sum(each)
            formula = f"{run.tokens:,} tokens x {len(own)} layers x {sum(each) // len(own):,} B"
        yield Kept(short, total, formula)


def _logits(module: nn.Module, run: Pass) -> int:
    """Return what a softmax over many classes and its gradient take for one row, in float32 at least."""
    many = isinstance(module, nn.Linear) and module.out_features > module.in_features
    return 2 * max(4, run.size) * module.out_features if many else 0


def _row_bytes(parent: nn.Module, children: list[nn.Module], run: Pass) -> int:
    """Return what some of the direct children of a module keep for one row."""
    linears = [child for child in children if isinstance(child, nn.Linear)]
    norms = [child for child in children if isinstance(child, NORMS)]
    shares = [child.p for child in children if isinstance(child, nn.Dropout) and child.p > 0]
    low = 2 if run.mixed else run.size
    if not linears:
        widths = sum(norm.normalized_shape[-1] for norm in norms)
        masks = len(shares) * max((norm.normalized_shape[-1] for norm in norms), default=0)
        return run.size * widths + (1 if run.on_gpu else run.size) * masks
    inputs, outputs = [child.in_features for child in linears], [child.out_features for child in linears]
    if is_attention(linears):
        shared = sum(inputs) if run.mixed else sum(inputs) - 2 * inputs[0]
        return low * (shared + sum(outputs) + outputs[2]) + _probabilities(
            parent, outputs[0], max(shares, default=0), run
        )
    after = run.size if norms else low  # a normalisation adds the residual first, in full precision
    masks = len(shares) * outputs[-1]
    return low * sum(inputs) + after * sum(outputs) + (1 if run.on_gpu else low) * masks


def _probabilities(parent: nn.Module, width: int, share: float, run: Pass) -> int:
    """Return what attention keeps of its probabilities for one token: none, but with dropout on a CPU."""
    if not share or run.on_gpu:
        return 0
    heads = getattr(parent, "num_attention_heads", 1)
    each = 2 + 4 + 4 if run.mixed else 3 * run.size  # the softmax, the mask, their product
    return heads * run.length * each + width * (2 if run.mixed else run.size)


def is_attention(linears: list[nn.Linear]) -> bool:
    """Tell whether these are query, key and value: three layers or more of one input."""
    return len(linears) >= 3 and len({linear.in_features for linear in linears}) == 1


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [child for child in module.modules() if isinstance(child, nn.Linear)]
