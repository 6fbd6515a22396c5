"""What is taken from a model and its optimizers, and put back."""

from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

from callbacks.checkpoint import Checkpoint
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.layouts import INTERNALS, Replicas, Shards, layout_of, require_internals
from lightning_modules.core.checkpoint.slices import share, snapshot
from lightning_modules.core.checkpoint.whole import describe_groups, persistent_buffers, plain, restore_groups


@pytest.mark.parametrize("count", [0, 1, 3, 7, 8, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_shares_partition_the_elements(count: int, world_size: int) -> None:
    ranges = [share(count, rank, world_size) for rank in range(world_size)]
    assert [i for first, last in ranges for i in range(first, last)] == list(range(count))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.frozen = nn.Parameter(torch.ones(4, dtype=torch.bfloat16), requires_grad=False)
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("cache", torch.zeros(2), persistent=False)


def stepped(optimizer_class: type, **options: object) -> tuple[Tied, torch.optim.Optimizer]:
    model = Tied()
    optimizer = optimizer_class([p for p in model.parameters() if p.requires_grad], lr=0.1, **options)
    (model.head(model.embed.weight) * model.scale).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("world_size", [1, 2, 4, 16])
def test_every_element_is_written_once(world_size: int) -> None:
    model, optimizer = stepped(torch.optim.AdamW)
    shards = [snapshot(Replicas(model, [optimizer]).slices(), rank, world_size) for rank in range(world_size)]
    assert {name for shard in shards for name in shard} == {"embed.weight", "scale", "frozen"}
    for name, parameter in model.named_parameters():
        pieces = [shard[name] for shard in shards if name in shard]
        assert torch.equal(torch.cat([piece["tensors"]["param"] for piece in pieces]), parameter.detach().view(-1))
        assert all(
            piece["tensors"]["param"].untyped_storage().nbytes() == piece["tensors"]["param"].nbytes for piece in pieces
        )
        if parameter.requires_grad:
            moments = torch.cat([piece["tensors"]["exp_avg"] for piece in pieces])
            assert torch.equal(moments, optimizer.state[parameter]["exp_avg"].view(-1))
            assert all(piece["scalars"]["step"].item() == 1 for piece in pieces)
    assert sorted(persistent_buffers(model)) == ["seen"]


@pytest.mark.parametrize(
    ("optimizer", "options", "keys"),
    [
        (torch.optim.AdamW, {"amsgrad": True}, {"param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
        (torch.optim.SGD, {"momentum": 0.9}, {"param", "momentum_buffer"}),
        (torch.optim.SGD, {}, {"param"}),
        (torch.optim.RMSprop, {}, {"param", "square_avg"}),
        (torch.optim.ASGD, {}, {"param", "ax"}),
    ],
)
def test_elementwise_states_of_any_name(optimizer: type, options: dict, keys: set[str]) -> None:
    model, instance = stepped(optimizer, **options)
    slices = {piece.name: piece for piece in Replicas(model, [instance]).slices()}
    assert set(slices["embed.weight"].tensors) == keys
    assert set(slices["frozen"].tensors) == {"param"}


def test_other_states_are_refused_by_name() -> None:
    model, optimizer = stepped(torch.optim.Adafactor)
    with pytest.raises(CheckpointError, match=r"optimizer Adafactor: keeps row_var of shape .* for embed.weight"):
        list(Replicas(model, [optimizer]).slices())
    model = Tied()
    stranger = torch.optim.SGD([nn.Parameter(torch.zeros(9))], lr=0.1)
    with pytest.raises(CheckpointError, match=r"a tensor of shape \[9\] that is no parameter"):
        Replicas(model, [stranger])
    twice = [torch.optim.SGD([model.scale], lr=0.1) for _ in range(2)]
    with pytest.raises(CheckpointError, match="parameter scale: stands in two optimizer groups"):
        Replicas(model, twice)
    model.embed.weight.data = torch.zeros(3, 5).t()
    with pytest.raises(CheckpointError, match=r"parameter embed.weight: is not contiguous"):
        list(Replicas(model, []).slices())


def test_strategies_without_a_layout_are_refused_by_name() -> None:
    strategy = FSDPStrategy.__new__(FSDPStrategy)
    strategy._lightning_module = None
    with pytest.raises(CheckpointError, match="strategy FSDPStrategy: has no checkpoint layout"):
        layout_of(strategy)


def test_weights_cut_along_another_dimension_are_refused() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Linear(4, 4, bias=False)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)), shard_placement_fn=lambda _: Shard(1))
        with pytest.raises(
            CheckpointError, match=r"parameter weight: is placed as .*only rows over one mesh dimension"
        ):
            list(Shards(model, []).slices())
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in INTERNALS for name in INTERNALS[kind]])
def test_another_version_of_the_engine_is_refused_by_the_name_that_is_gone(kind: str, name: str) -> None:
    part = SimpleNamespace(**dict.fromkeys(INTERNALS[kind]))
    require_internals(part, kind)
    delattr(part, name)
    with pytest.raises(CheckpointError, match=rf"deepspeed [\d.]+: its {kind} has no {name}, which"):
        require_internals(part, kind)


def test_the_rate_comes_back_and_what_is_configured_now_holds() -> None:
    model, optimizer = stepped(torch.optim.AdamW, betas=(0.8, 0.9), weight_decay=0.3)
    saved = plain(describe_groups(Replicas(model, [optimizer]).groups()), "trainer.pt")
    trained = [p for p in model.parameters() if p.requires_grad]
    fresh = torch.optim.AdamW(trained, lr=torch.tensor(9.0), weight_decay=0.5, fused=True)
    restore_groups(Replicas(model, [fresh]).groups(), saved, Path("folder"))
    group = fresh.param_groups[0]
    assert group["betas"] == (0.9, 0.999) and group["weight_decay"] == 0.5
    assert isinstance(group["lr"], torch.Tensor) and group["lr"].item() == pytest.approx(0.1)
    assert group["fused"] is True
    with pytest.raises(CheckpointError, match=r"folder: was saved with AdamW, this run has SGD"):
        restore_groups(Replicas(model, [torch.optim.SGD(model.parameters())]).groups(), saved, Path("folder"))
    with pytest.raises(CheckpointError, match=r"folder: group 0 of AdamW held other parameters"):
        restore_groups(Replicas(model, [torch.optim.AdamW([model.scale])]).groups(), saved, Path("folder"))


class Colour(str, Enum):
    RED = "red"


def test_plain_copies_and_names_what_is_not() -> None:
    tensor = torch.zeros(2)
    copied = plain({"a": (1, np.float64(2.0), Colour.RED), "b": {3: tensor}, "c": None}, "x")
    tensor += 1
    assert copied == {"a": [1, 2.0, "red"], "b": {3: copied["b"][3]}, "c": None}
    assert type(copied["a"][1]) is float and type(copied["a"][2]) is str and copied["b"][3].sum() == 0
    with pytest.raises(CheckpointError, match=r"trainer.pt.callbacks.mine\[1\]: is a PosixPath"):
        plain({"callbacks": {"mine": [0, Path("a")]}}, "trainer.pt")
    with pytest.raises(CheckpointError, match=r"x.a: has a tuple as a key"):
        plain({"a": {(1, 2): 3}}, "x")


@pytest.mark.parametrize("key", ["every_n_steps", "keep_last", "keep_every_n_steps"])
def test_callback_refuses_numbers_below_one(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"callbacks.checkpoint.{key}: 0 is below 1"):
        Checkpoint(**{key: 0})
