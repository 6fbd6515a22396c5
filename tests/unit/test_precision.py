"""Half precision reaches matrix products, and no further: softmaxes, losses, moments and norms stay in float32."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.test_step import small, train

REDUCTIONS = {
    "_softmax",
    "_log_softmax",
    "_softmax_backward_data",
    "_log_softmax_backward_data",
    "cumsum",
    "exp",
    "log",
    "nll_loss_forward",
    "nll_loss_backward",
    "softplus",
    "binary_cross_entropy_with_logits",
    "linalg_vector_norm",
    "_foreach_norm",
    "_fused_adamw_",
}
PRODUCTS = {"mm", "addmm", "bmm"}


class Operations(TorchDispatchMode):
    """Notes the types of floating-point operands by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        dtypes = {leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()}
        self.seen.setdefault(func.overloadpacket.__name__, set()).update(dtypes)
        return func(*args, **(kwargs or {}))


def test_what_half_precision_reaches(tmp_path):
    method = small(clip_norm=0.1)
    with Operations() as operations:
        train(method, [4, 4], steps=2, folder=str(tmp_path), precision="bf16-mixed")
    seen = operations.seen
    products = set().union(*(seen.get(name, set()) for name in PRODUCTS))
    assert torch.bfloat16 in products, "the precision was in force"
    watched = {name: dtypes for name, dtypes in seen.items() if name in REDUCTIONS and dtypes}
    assert {"_softmax", "_log_softmax", "nll_loss_forward", "linalg_vector_norm"} <= watched.keys()
    halves = {name for name, dtypes in watched.items() if torch.bfloat16 in dtypes}
    assert halves == set()
    assert all(p.dtype is torch.float32 for p in method.parameters())


def test_layer_norm_keeps_its_statistics_in_float32():
    """Its input may be bf16: torch adds up in float32 all the same."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(64, 4096, generator=generator) + 100).bfloat16()
    ours = torch.nn.functional.layer_norm(x, (4096,)).float()
    wide = torch.nn.functional.layer_norm(x.float(), (4096,))
    torch.testing.assert_close(ours, wide, rtol=2**-7, atol=2**-9)
