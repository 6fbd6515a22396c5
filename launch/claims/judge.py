"""Judging an encoder on labelled tasks: logistic regression on frozen vectors, and fine-tuning; alike for all arms."""

import hashlib
import json
import logging
import signal
import tempfile
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Trainer, seed_everything
from lightning.fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from datamodules.core.processes import end_with_parent
from datamodules.core.wordpiece import TokenizerOptions
from datamodules.labelled import LabelledText
from launch.claims.plan import Judging, Task
from launch.config.defaults import FIXED_TRAINER
from launch.run_folder import read_json, write_json
from launch.strategies.replicas import single
from lightning_modules.core.attention import encode
from lightning_modules.core.encoder_sources import encoder_config, load_encoder
from lightning_modules.finetune.modeling import FAMILIES, bare_encoder
from lightning_modules.finetune.module import Finetune

SCORES_FILE, FRESH_FILE = "scores.json", "scores_fresh.json"  # in the run's folder: what has been judged already
SPLIT_SEED = 0  # which training examples are drawn, and which fold each is in


class Wanted(NamedTuple):
    """What is to be judged: a run at a step, by which measures, and whether its weights count or fresh ones."""

    run: Path
    step: int
    measures: tuple[str, ...] = ("probe", "finetune")
    trained: bool = True


class Vectors(NamedTuple):
    """Frozen vectors of the examples of a split, in their order, and the numbers of their classes."""

    mean: NDArray[np.float32]  # mean of the last hidden states over all tokens, special ones included
    cls: NDArray[np.float32]  # last hidden state of [CLS]
    labels: NDArray[np.int64]


class Judge:
    """Scores encoders on tasks; what was scored once is read from the run's folder."""

    def __init__(self, judging: Judging, tasks: dict[str, Task], trainer: dict[str, Any]) -> None:
        self.judging, self.tasks, self.trainer = judging, tasks, trainer
        self.data: dict[str, LabelledText] = {}

    def scores(self, wanted: Wanted) -> dict[str, dict[str, float]]:
        """Return for each task probe_mean, probe_cls, both also with _cv, and finetune; or some of these."""
        file = file_of(wanted)
        for name, measure, key in self.keys(wanted):
            known = read_json(file) or {}
            if key not in known:
                write_json(file, known | {key: self.measure(wanted.run, name, measure, wanted.trained)})
        return self.known(wanted)

    def known(self, wanted: Wanted) -> dict[str, dict[str, float]] | None:
        """Return the scores that are stored; None if one is missing."""
        stored, found = read_json(file_of(wanted)) or {}, {}
        for name, _, key in self.keys(wanted):
            found.setdefault(name, {}).update(stored.get(key) or {"missing": 0.0})
        return None if any("missing" in scores for scores in found.values()) else found

    def keys(self, wanted: Wanted) -> list[tuple[str, str, str]]:
        """Return task, measure and name of each measurement that is wanted."""
        return [
            (name, measure, self.key(name, task, wanted.step, measure))
            for name, task in self.tasks.items()
            for measure in wanted.measures
        ]

    def key(self, name: str, task: Task, step: int, measure: str) -> str:
        """Name a measurement by all that decides it."""
        facts = json.dumps([asdict(task), asdict(self.judging), self.trainer, step], sort_keys=True)
        return f"{name}/{measure}/{hashlib.sha256(facts.encode()).hexdigest()[:16]}"

    def measure(self, run: Path, name: str, measure: str, trained: bool) -> dict[str, float]:
        """Probe or fine-tune an encoder."""
        data, metric = self.data_of(run, name), self.tasks[name].metric
        if measure == "finetune":
            results = [self.finetuned(run, data, metric, seed, trained) for seed in self.judging.seeds]
            return {"finetune": float(np.mean(results))}
        encoder = self.encoder(run, data, trained)
        train, test = (vectors(encoder, data, split) for split in ("train", "test"))
        mean = probed((train.mean, train.labels), (test.mean, test.labels), metric, self.judging)
        cls = probed((train.cls, train.labels), (test.cls, test.labels), metric, self.judging)
        both = {"probe_mean": mean, "probe_cls": cls}
        return {f"{kind}{part}": value for kind, parts in both.items() for part, value in parts.items()}

    def data_of(self, run: Path, name: str) -> LabelledText:
        """Tokenise a task once: the arms share one tokenizer."""
        if name not in self.data:
            task = self.tasks[name]
            options = {key: value for key, value in asdict(task).items() if key != "metric"}
            size = self.judging.batch_size
            data = LabelledText(
                TokenizerOptions(name=str(run / "tokenizer")),
                global_batch_size=size,
                micro_batch_size=size,
                sequence_length=self.judging.sequence_length,
                num_examples=self.judging.num_examples,
                **options,
            )
            data.seed = SPLIT_SEED
            data.setup()
            self.data[name] = data
        return self.data[name]

    def encoder(self, run: Path, data: LabelledText, trained: bool) -> nn.Module:
        """Build the encoder of a run on the device that trains."""
        torch.manual_seed(SPLIT_SEED)
        encoder = bare_encoder(encoder_config(str(run), data.tokenizer, FAMILIES))
        if trained:
            load_encoder(encoder, str(run))
        return encoder.eval().to("cuda" if self.trainer["accelerator"] == "gpu" else "cpu")

    def finetuned(self, run: Path, data: LabelledText, metric: str, seed: int, trained: bool) -> float:
        """Fine-tune on the training examples and return the metric on the test."""
        judging, examples = self.judging, len(data.splits["train"])
        steps = max(1, round(judging.epochs * examples / judging.batch_size))
        seed_everything(seed, verbose=False)
        method = Finetune(
            init_from=str(run),
            learning_rate=judging.learning_rate,
            layer_decay=judging.layer_decay,
            warmup_steps=round(judging.warmup_fraction * steps),
        )
        method.seed = data.seed = seed
        if not trained:  # what is built before the trainer asks for it is not given the run's weights
            method.label_names = data.label_names
            method.build(data.tokenizer, data.sequence_length)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the trainer advises more loader processes
            trainer = Trainer(
                **FIXED_TRAINER,
                **self.trainer,
                max_steps=steps,
                strategy=single(),
                logger=False,
                limit_val_batches=0,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
            trainer.fit(method, datamodule=data)
            trainer.test(method, datamodule=data, verbose=False)
        return 100 * method.logged[f"test/{metric}"]

    def majority(self, run: Path, name: str) -> float:
        """Return what the most frequent class of the training examples scores on the test."""
        data = self.data_of(run, name)
        train, test = (data.splits[split].labels.numpy() for split in ("train", "test"))
        return 100 * measured(test, np.full_like(test, np.bincount(train).argmax()), self.tasks[name].metric)


@torch.no_grad()
def vectors(encoder: nn.Module, data: LabelledText, split: str) -> Vectors:
    """Run a frozen encoder over a split."""
    count, device = len(data.splits[split]), next(encoder.parameters()).device
    mean, cls = (torch.zeros(count, encoder.config.hidden_size) for _ in range(2))
    for step in data.evaluation(split):
        for batch in step:
            batch = move_data_to_device(batch, device)
            hidden_TD = encode(encoder, batch["ids_T"], batch)
            lens_B = batch["layout"].lens_B
            sums_BD = hidden_TD.new_zeros(len(lens_B), hidden_TD.shape[1])
            sums_BD = sums_BD.index_add(0, batch["sequence_T"], hidden_TD)
            place = batch["sample_B"].cpu()
            mean[place] = (sums_BD / lens_B[:, None]).float().cpu()
            cls[place] = hidden_TD[batch["layout"].cu_seqlens[:-1].long()].float().cpu()
    return Vectors(mean.numpy(), cls.numpy(), data.splits[split].labels.numpy())


def probed(
    train: tuple[NDArray, NDArray], test: tuple[NDArray, NDArray], metric: str, judging: Judging
) -> dict[str, float]:
    """Fit a logistic regression whose strength is chosen by cross-validation on the training examples.

    Returns the score on the test ("") and the cross-validated one ("_cv"), both times 100.
    """
    folds = StratifiedKFold(judging.folds, shuffle=True, random_state=SPLIT_SEED)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    grid = {"logisticregression__C": judging.strengths}
    search = GridSearchCV(model, grid, scoring=lambda fit, x, y: measured(y, fit.predict(x), metric), cv=folds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of iterations that were used up, at the weakest strength
        search.fit(*train)
    return {"": 100 * measured(test[1], search.predict(test[0]), metric), "_cv": 100 * float(search.best_score_)}


def measured(truth: NDArray, chosen: NDArray, metric: str) -> float:
    """Return one metric of chosen classes."""
    if metric == "f1":
        return float(f1_score(truth, chosen, average="binary" if truth.max() < 2 else "macro", zero_division=0))
    return float({"accuracy": accuracy_score, "mcc": matthews_corrcoef}[metric](truth, chosen))


def judged(
    wanted: list[Wanted], judging: Judging, tasks: dict[str, Task], trainer: dict[str, Any], processes: int
) -> list[dict[str, dict[str, float]]]:
    """Judge runs in several processes, in their order; what was judged before costs nothing."""
    known = Judge(judging, tasks, trainer).known
    missing = [one for one in wanted if known(one) is None]
    if not missing:
        return [known(one) for one in wanted]
    pool = ProcessPoolExecutor(
        min(processes, len(missing)), get_context("spawn"), start_worker, (judging, tasks, trainer)
    )
    try:
        list(pool.map(judge_in_worker, missing))
        return [known(one) for one in wanted]
    except BaseException:
        for process in active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker(judging: Judging, tasks: dict[str, Task], trainer: dict[str, Any]) -> None:
    """Prepare a process of the pool, which ends with the process that started it."""
    global WORKER
    quiet()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it ends it
    threading.Thread(target=end_with_parent, daemon=True).start()
    WORKER = Judge(judging, tasks, trainer)


def judge_in_worker(wanted: Wanted) -> None:
    """Judge one run in a process of the pool; its scores are in the run's folder then."""
    WORKER.scores(wanted)


def file_of(wanted: Wanted) -> Path:
    """Return the file with the scores of a run, or of fresh weights in its place."""
    return wanted.run / (SCORES_FILE if wanted.trained else FRESH_FILE)


def quiet() -> None:
    """Keep Lightning and transformers from telling about every small fit."""
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
