"""A small run with everything that a checkpoint has to carry, and a harness that starts, kills and compares runs.

Processes come from a fork server that has imported torch already, so a run of two ranks takes about a second.
"""

import contextlib
import dataclasses
import errno
import faulthandler
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from callbacks.checkpoint import Checkpoint, KeepBest
from callbacks.divergence import Divergence
from callbacks.loggers import JsonLines, TensorBoard
from callbacks.run_record import RunRecord
from launch.strategies.replicas import ddp, single
from lightning_modules.core import stop
from lightning_modules.core.checkpoint import publish, strategy
from lightning_modules.core.checkpoint.verify import newest_complete, step_folder
from tests import forked

VOCABULARY, WIDTH, ROWS, LENGTH = 31, 6, 8, 5


@dataclass(frozen=True)
class Run:
    """One attempt of the toy run."""

    folder: Path
    world_size: int = 1  # 1 is `single`
    max_steps: int = 12
    every_n_steps: int = 4
    checkpoint: dict = field(default_factory=lambda: {"keep_last": 100})
    width: int = WIDTH
    optimizer: str = "AdamW"
    fixed_buckets: bool = True
    stop_at: int | None = None  # asks for an orderly stop in this step
    kill: tuple[str, int] | None = None  # (point of `publish.reached`, saves before), or (moment of Killer, steps)
    kill_rank: int | None = 0  # None: every rank
    signal: int = signal.SIGKILL
    leaves_others: bool = False  # to notice for themselves that a rank is gone
    raises: bool = False  # raise an error at that point instead
    batches: int | None = None  # the data end after so many
    resume: Path | None = None
    task: str = "fit"
    strategy: str = ""  # one that `strategies_toy` trains a method under; empty: single or ddp
    dropout: float = 0.1  # of that method
    precision: str = "32-true"
    layers: tuple[bool, bool] = (False, False)  # of that method: run twice, compiled
    toy: str = ""  # "pairs": the method of `pairs_toy` in its place
    cached: bool = False  # of that one: runs its encoder twice
    micro_batch_size: int = 4
    learning_rate: float = 0.5
    wrong_gather: bool = False
    num_workers: int = 0
    poison: tuple[int, float] | None = None  # (step, factor): on the last rank, its last micro-batch's loss
    divergence: dict | None = None
    best_at: float = 8.0  # step whose validation is best
    without_branch: tuple[int, tuple[int, ...]] | None = None  # (step, its micro-batches) that do not run the branch

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


class Toy(pl.LightningModule):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.automatic_optimization = False
        torch.manual_seed(5 if run.task == "fit" else 6)
        self.embed = nn.Embedding(VOCABULARY, run.width)
        self.norm = nn.LayerNorm(run.width)
        self.mix = nn.Linear(run.width, run.width)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Linear(run.width, run.width, bias=False).requires_grad_(False)
        self.head = nn.Linear(run.width, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def training_step(self, tokens_BL: Tensor, batch_idx: int) -> None:
        optimizer, step = self.optimizers(), self.trainer.global_step
        hidden_BLD = self.frozen(self.embed(tokens_BL[:, :-1]) * (1 + self.seen[0] / 100))
        hidden_BLD = self.norm(hidden_BLD + torch.tanh(self.mix(hidden_BLD))) * self.scale
        loss = F.cross_entropy(self.head(hidden_BLD).flatten(0, 1), tokens_BL[:, 1:].flatten())
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        self.lr_schedulers().step()
        self.seen += torch.tensor([1.0, 0.5, float(step)])
        loss = self.trainer.strategy.reduce(loss.detach().clone())
        if self.trainer.is_global_zero:
            with (self.run.folder / "losses.jsonl").open("a") as file:
                file.write(json.dumps([step + 1, float(loss).hex()]) + "\n")
        if self.run.stop_at == step + 1:
            self.trainer.should_stop = True

    def validation_step(self, tokens_BL: Tensor, batch_idx: int) -> None:
        self.log("weight_sum", self.embed.weight.double().sum() + self.frozen.weight.double().sum() + self.seen.sum())

    test_step = validation_step

    def configure_optimizers(self) -> tuple[list, list]:
        plain = [p for name, p in self.named_parameters() if p.requires_grad and "norm" not in name and p.dim() == 2]
        rest = [p for name, p in self.named_parameters() if p.requires_grad and ("norm" in name or p.dim() < 2)]
        groups = [{"params": plain, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        optimizer = getattr(torch.optim, self.run.optimizer)(groups, lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 5))]


class Batches(IterableDataset):
    """Batches that are a function of the step; a rank gets its rows of each."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self.trainer = trainer

    def __iter__(self) -> Iterator[Tensor]:
        step, rows = self.trainer.global_step, ROWS // self.trainer.world_size
        while step != self.trainer.lightning_module.run.batches:
            generator = torch.Generator().manual_seed(1000 + step)
            tokens_BL = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
            yield tokens_BL[self.trainer.global_rank * rows :][:rows]
            step += 1


class Validation(pl.Callback):
    """Stands for the real one: a value for some steps."""

    def __init__(self, every_n_steps: int, best_at: float) -> None:
        self.every_n_steps, self.best_at, self.last, self.last_step = every_n_steps, best_at, {}, -1

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self.last, self.last_step = {"val/score": -abs(trainer.global_step - self.best_at)}, trainer.global_step


class Killer(pl.Callback):
    """Ends the process, or asks it to stop, between two steps ("step") or inside a backward pass ("backward")."""

    MOMENTS = ("step", "backward")

    def __init__(self, run: Run) -> None:
        (self.moment, self.step), self.signal, self.raises = run.kill, run.signal, run.raises
        self.due = step_folder(run.checkpoints, run.kill[1] // run.every_n_steps * run.every_n_steps)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if (self.moment, self.step) == ("step", trainer.global_step):
            if self.raises:
                raise RuntimeError("the data are at fault")
            deadline = time.monotonic() + 5
            while self.signal == signal.SIGKILL and not self.due.exists() and time.monotonic() < deadline:
                time.sleep(0.01)  # saves are asynchronous; to be killed inside of one has points of its own
            os.kill(os.getpid(), self.signal)

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        if (self.moment, self.step) == ("backward", trainer.global_step):
            loss.register_hook(lambda _: os.kill(os.getpid(), self.signal))


class Lines(Logger):
    """Notes what is logged and when it is flushed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.waiting = path, []

    name, version = "lines", ""

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.waiting.append([step, metrics])

    def save(self) -> None:
        with self.path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in self.waiting)
        self.waiting = []


def strategy_of(run: Run) -> pl.strategies.Strategy:
    if run.strategy in ("", "single"):
        return single() if run.world_size == 1 else ddp("gloo", timeout_seconds=60)
    from tests.multiproc import strategies_toy

    return strategies_toy.STRATEGIES[run.strategy]()


def trainer_of(run: Run) -> pl.Trainer:
    callbacks: list[pl.Callback] = [Checkpoint(every_n_steps=run.every_n_steps, **run.checkpoint)]
    if run.checkpoint.get("keep_best") is not None:
        callbacks.append(Validation(4, run.best_at))
    if run.divergence is not None:
        callbacks.append(Divergence(**run.divergence))
    if run.kill is not None and run.kill[0] in Killer.MOMENTS:
        callbacks.append(Killer(run))
    loggers: list[Logger] = [Lines(run.folder / "lines.jsonl")]
    if run.strategy:
        callbacks.append(RunRecord())
        loggers = [JsonLines(str(run.folder)), TensorBoard(str(run.folder))]
    return pl.Trainer(
        accelerator="cpu",
        devices=run.world_size,
        strategy=strategy_of(run),
        precision=run.precision,
        max_steps=run.max_steps,
        max_epochs=None if run.batches is None else 1,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=run.folder,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0 if run.task == "fit" else 1,
        limit_test_batches=1,
        log_every_n_steps=1,
    )


def launch(run: Run) -> tuple[pl.Trainer, Toy]:
    if run.strategy:
        from tests.multiproc import pairs_toy, strategies_toy

        return (pairs_toy if run.toy else strategies_toy).launch(run)
    trainer, toy = trainer_of(run), Toy(run)
    loader = DataLoader(Batches(trainer), batch_size=None)
    path = None if run.resume is None else str(run.resume)
    getattr(trainer, run.task)(toy, loader, ckpt_path=path)
    return trainer, toy


def state_of(trainer: pl.Trainer, toy: Toy) -> dict[str, object]:
    """Everything that has to come back, exactly."""
    optimizer = trainer.optimizers[0]
    state: dict[str, object] = {f"buffer {name}": value.tolist() for name, value in toy.named_buffers()}
    for name, parameter in toy.named_parameters():
        state[name] = _digest(parameter)
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{name} {key}"] = _digest(value)
    for index, group in enumerate(optimizer.param_groups):
        state[f"group {index}"] = {key: value for key, value in group.items() if key != "params"}
    state["scheduler"] = trainer.lr_scheduler_configs[0].scheduler.state_dict()
    state["step"] = trainer.global_step
    return json.loads(json.dumps(state))


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def run_rank(run: Run, rank: int, port: int) -> None:
    """Entry of a process."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for loader workers, as in a run
    sys.stderr = sys.stdout = (run.folder / f"out_{rank}.txt").open("a", buffering=1)
    faulthandler.dump_traceback_later(25, file=sys.stderr)  # what a rank waits for that does not end
    if run.world_size > 1 or run.strategy:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    if not run.fixed_buckets:
        from launch.strategies import replicas

        replicas.fix_bucket_order = lambda model: None
    strategy.LEAVE_PATIENCE_SECONDS = 3.0
    if run.kill is not None and run.kill_rank in (rank, None):
        publish.reached = _ending(run)
    elif run.kill is not None:
        run = dataclasses.replace(run, kill=None)
    trainer, toy = launch(run)
    if any(isinstance(callback, RunRecord) and callback.stopped for callback in trainer.callbacks):
        sys.exit(stop.RESUMABLE)
    if run.task != "fit":
        (run.folder / f"{run.task}_{rank}.json").write_text(json.dumps(trainer.callback_metrics["weight_sum"].item()))
    elif rank == run.world_size - 1 and not run.strategy:
        (run.folder / "final.json").write_text(json.dumps(state_of(trainer, toy)))
        torch.save(toy.state_dict(), run.folder / "weights.pt")


def _ending(run: Run) -> Callable[[str], None]:
    """Make a `publish.reached` that ends the process at a point of one save; inside a file, at its third write."""
    point, saves_before = run.kill
    saves, passes = 0, 0

    def reached(name: str) -> None:
        nonlocal saves, passes
        if name == point and saves == saves_before:
            passes += 1
            if passes == (3 if point == "write" else 1):
                if run.raises:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                os.kill(os.getpid(), run.signal)
        saves += name in ("end", "marker")

    return reached


def start(run: Run) -> list[int]:
    """Run all ranks to their end; when one dies, so do the others. Returns the exit codes."""
    run.folder.mkdir(exist_ok=True)
    context, port = forked.server(), forked.free_port()
    processes = [context.Process(target=run_rank, args=(run, rank, port)) for rank in range(run.world_size)]
    forked.begin(processes)
    while any(process.is_alive() for process in processes):
        if any(process.exitcode not in (None, 0, stop.RESUMABLE) for process in processes):
            waits = run.kill is None or run.raises or run.leaves_others  # errors are raised on all
            with contextlib.suppress(ProcessLookupError):
                for process in processes:
                    process.join(20 if waits else 0)
                    process.kill()
        time.sleep(0.01)
    return [process.exitcode for process in processes]


def resume(run: Run) -> Path | None:
    """The folder that a restart would go on from."""
    return newest_complete(run.checkpoints)


def result(run: Run) -> dict[str, object]:
    """What a finished run ended with, and the losses of all its steps, the last attempt's where steps were repeated."""
    losses = dict(json.loads(line) for line in (run.folder / "losses.jsonl").read_text().splitlines())
    assert sorted(losses) == list(range(1, run.max_steps + 1))
    return {"final": json.loads((run.folder / "final.json").read_text()), "losses": losses}


def output(run: Run) -> str:
    return "".join(path.read_text() for path in sorted(run.folder.glob("out_*.txt")))


__all__ = ["KeepBest", "Run", "output", "result", "resume", "start", "step_folder"]
