"""Pooled outputs of layers, and the terms of 2D Matryoshka written out, for tests."""

import torch
from torch import Tensor

N, C, B, D = 5, 2, 6, 16
OWN = slice(0, B)


def stack_of(layers: int = N, width: int = D, seed: int = 0) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(C, B, width, generator=generator, dtype=torch.float64).requires_grad_()
        for n in range(layers + 1)
    }


def base_of(own: slice):
    """Return a loss of rows that is not indifferent to the length of vectors, nor to which coordinates it sees."""

    def base(table_CBD: Tensor) -> Tensor:
        ramp = torch.linspace(1, 2, table_CBD.shape[-1], dtype=table_CBD.dtype)
        return ((table_CBD[0, own] - table_CBD[1, own]) * ramp).square().sum(-1).log1p().sum() / table_CBD.shape[1]

    return base


def base(x: Tensor) -> Tensor:
    return base_of(OWN)(x)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return the mean over texts of sum p (ln p - ln q), p of the teacher."""
    values = []
    for t, s in zip(teacher.reshape(C * B, -1), student.reshape(C * B, -1), strict=True):
        p, q = ((x / temperature).exp() / (x / temperature).exp().sum() for x in (t, s))
        values.append((p * (p.log() - q.log())).sum())
    return torch.stack(values).mean()


def align(x: Tensor, k: int, p: Tensor, temperature: float) -> Tensor:
    squares = torch.stack([(x[c, b, j] - p[c, b, j]) ** 2 for c in range(C) for b in range(B) for j in range(k)])
    return squares.mean() + temperature * kl(p, x[..., :k], temperature)


def check(found: Tensor, expected: Tensor, stack: dict[int, Tensor], where: dict[int, Tensor]) -> None:
    """Compare losses, and the gradients at every layer."""
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    found.backward()
    expected.backward()
    for layer, tensor in stack.items():
        ours, theirs = (torch.zeros_like(x) if x.grad is None else x.grad for x in (tensor, where[layer]))
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
