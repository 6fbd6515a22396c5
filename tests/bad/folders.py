"""Mistakes in the folders of runs: what stands in them, and what is asked of them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from launch.run_folder import _identity
from lightning_modules.core.checkpoint.verify import seal
from tests.bad.data import GOOD, lines
from tests.bad.models import CODE, Bomb, Damage, cut, put, removed
from tests.bad.trying import Mistake
from tests.forked import train

STEP = "run/checkpoints/step_00000002"
FIT = "fit --run.dir run --trainer.max_steps 4"
EXPORT = "export run --out out"


def make(folder: Path) -> None:
    """Train a run of two steps and another one of another seed, whose files are named from inside the folder."""
    (folder / "good.jsonl").write_text(GOOD)
    for name, seed in (("run", 1), ("other", 2)):
        train(
            folder / name, 1, "--config=configs/finetune/debug.yaml", f"--data.source={folder / 'good.jsonl'}",
            "--data.text_field=text", "--data.label_field=label", "--trainer.max_steps=2", f"--seed={seed}",
            f"--data.cache_dir={folder / 'cache'}", "--callbacks.validation=null",
            "--callbacks.checkpoint.every_n_steps=2",
        )  # fmt: skip


def asked(words: str, message: str, damage: Damage = lambda _: None) -> tuple[Mistake, Damage]:
    """A command line in a folder with such runs, after something has befallen them."""
    return Mistake(words, message), damage


def turned(name: str, into: Callable[[Path], object]) -> Damage:
    """Put something else in the place of a file or a folder."""

    def change(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        into(path)

    return change


def loop(path: Path) -> None:
    """A link to itself."""
    path.symlink_to(path.name)


def file(path: Path) -> None:
    """A file that is none of ours."""
    path.write_text("x")


def gone(path: Path) -> None:
    """Nothing."""


def replaced(name: str, old: str, new: str) -> Damage:
    """Change words of a text."""

    def change(folder: Path) -> None:
        content = (folder / name).read_text()
        assert old in content, content
        (folder / name).write_text(content.replace(old, new))

    return change


def manifest(**changes: object) -> Damage:
    """Change the manifest of the checkpoint, and seal it again."""

    def change(folder: Path) -> None:
        path = folder / STEP / "manifest.json"
        found = json.loads(path.read_text()) | changes
        path.write_text(json.dumps(found | {"sha256": seal(found)}))

    return change


def code(folder: Path) -> None:
    """Put code into the checkpoint, and seal it again."""
    import hashlib

    path = folder / STEP / "shard_00000.pt"
    torch.save({"w": Bomb()}, path)
    told = json.loads((folder / STEP / "manifest.json").read_text())["files"]
    content = path.read_bytes()
    told[path.name] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest(files=told)(folder)


def others(folder: Path) -> None:
    """Put another run's checkpoint in the place of the run's own."""
    shutil.rmtree(folder / STEP)
    shutil.copytree(folder / STEP.replace("run", "other", 1), folder / STEP)


def held(folder: Path) -> None:
    """Lock the run by a process that lives."""
    (folder / "run/lock").write_text(json.dumps(_identity()))


def evil(key: str, text: str) -> Damage:
    """Name a class in the configuration of the run that would be executed, and lay one into the run."""

    def change(folder: Path) -> None:
        put("run/evil.py", CODE)(folder)
        path = folder / "run/config.yaml"
        told = yaml.safe_load(path.read_text())
        told[key] = {**(told[key] if key == "model" else {}), **yaml.safe_load(text)}
        path.write_text(yaml.safe_dump(told))

    return change


RUNS: dict[str, tuple[Mistake, Damage]] = {
    "run: a configuration that links to itself": asked(FIT, r"run\.dir = run .*config\.yaml", turned("run/config.yaml", loop)),
    "run: a configuration that is a folder": asked(FIT, r"run\.dir = run .*config\.yaml", turned("run/config.yaml", os.mkdir)),
    "run: no configuration": asked(FIT, r"run", turned("run/config.yaml", gone)),
    "run: an empty configuration": asked(FIT, r"run/config\.yaml", put("run/config.yaml", "")),
    "run: half a configuration": asked(FIT, r"run/config\.yaml", put("run/config.yaml", "model: {class: fine")),
    "run: a binary configuration": asked(FIT, r"run/config\.yaml", put("run/config.yaml", bytes(range(256)))),
    "run: code as a strategy": asked(FIT, r"strategy", evil("strategy", "{class: subprocess.getoutput, cmd: touch ran}")),
    "run: code as its method": asked(FIT, r"model", evil("model", "class: subprocess.Popen")),
    "run: its own code as its method": asked(FIT, r"model", evil("model", "class: run.evil.Evil")),
    "run: its own code as its method, tested": asked("test --run.dir run", r"model", evil("model", "class: run.evil.Evil")),
    "run: its own code as its method, exported": asked(EXPORT, r"model", evil("model", "class: run.evil.Evil")),
    "run: curves in a file": asked(FIT, r"run/tensorboard: is no folder", turned("run/tensorboard", file)),
    "run: its tokenizer in a file": asked(FIT, r"run/tokenizer: is no folder", turned("run/tokenizer", file)),
    "run: its checkpoints in a file": asked(FIT, r"run/checkpoints: is no folder", turned("run/checkpoints", file)),
    "run: its checkpoints in a loop": asked(FIT, r"run/checkpoints", turned("run/checkpoints", loop)),
    "run: metrics in a folder": asked(FIT, r"run/metrics\.jsonl: is no file", turned("run/metrics.jsonl", os.mkdir)),
    "run: a ledger in a folder": asked(FIT, r"run/ledger\.jsonl: is no file", turned("run/ledger.jsonl", os.mkdir)),
    "run: a lock in a folder": asked(FIT, r"run/lock: is no file", turned("run/lock", os.mkdir)),
    "run: a pipe as its metrics": asked(FIT, r"run/metrics\.jsonl: is no file", turned("run/metrics.jsonl", os.mkfifo)),
    "run: in use": asked(FIT, r"run\.dir = .*run: in use by process \d+", held),
    "run: half a manifest": asked(FIT, r"every checkpoint is damaged", cut(f"{STEP}/manifest.json")),
    "run: no manifest": asked(FIT, r"run/checkpoints", removed(f"{STEP}/manifest.json")),
    "run: a manifest that was changed": asked(FIT, r"every checkpoint is damaged", replaced(f"{STEP}/manifest.json", '"step": 2', '"step": 3')),
    "run: a manifest of many ranks": asked(FIT, r"every checkpoint is damaged", manifest(world_size=10**12)),
    "run: a manifest of another step": asked(FIT, r"every checkpoint is damaged", manifest(step=3)),
    "run: a manifest without files": asked(FIT, r"every checkpoint is damaged", manifest(files={})),
    "run: half a shard": asked(FIT, r"every checkpoint is damaged", cut(f"{STEP}/shard_00000.pt")),
    "run: no shard": asked(FIT, r"every checkpoint is damaged", removed(f"{STEP}/shard_00000.pt")),
    "run: a shard that is a folder": asked(FIT, r"every checkpoint is damaged", turned(f"{STEP}/shard_00000.pt", os.mkdir)),
    "run: a shard of code": asked(FIT, r"every checkpoint is damaged|carries code", code),
    "run: another run's checkpoint": asked(FIT, r"checkpoint.*another run|of another", others),
    "run: another seed": asked(f"{FIT} --seed 7", r"seed"),
    "run: another method": asked(f"{FIT} --model.class electra", r"model"),
    "run: another width": asked(f"{FIT} --model.untrained.hidden_size 64", r"use the model that was saved"),
    "run: another batch": asked(f"{FIT} --data.global_batch_size 4", r"data\.global_batch_size"),
    "run: other data": asked(f"{FIT} --data.source changed.jsonl", r"data", put("changed.jsonl", GOOD + GOOD)),
    "run: fresh": asked(f"{FIT} --run.fresh true", r"run\.fresh = true: .*exists"),
    "run: no such step": asked(f"{FIT} --run.checkpoint 99", r"run\.checkpoint = 99: there is no"),
    "run: a checkpoint of no name": asked(f"{FIT} --run.checkpoint last", r"run\.checkpoint = last: there is no"),
    "run: names of classes that are no JSON": asked("test --run.dir run --data.test_source good.jsonl", r"labels\.json: cannot be read", put("run/labels.json", "{")),
    "run: names of classes twice": asked("test --run.dir run --data.test_source good.jsonl", r"labels\.json: is no list of different names", put("run/labels.json", '["a", "a"]')),
    "run: no names of classes": asked("test --run.dir run --data.test_source good.jsonl", r"labels\.json: is missing", removed("run/labels.json")),
    "run: a tokenizer that is no JSON": asked("test --run.dir run --data.test_source good.jsonl", r"tokenizer", put("run/tokenizer/tokenizer.json", "{")),
    "run: nothing to test": asked("test --run.dir run", r"data\.test_source = null"),
    "run: nothing to predict": asked("predict --run.dir run", r"data\.predict_source = null"),
    "run: nothing to validate": asked("validate --run.dir run", r"data\.validation_source.*nothing"),
    "run: a class that it does not know": asked("test --run.dir run --data.test_source new.jsonl", r"new\.jsonl:1: label 'maybe' is none of", put("new.jsonl", lines({"text": "a", "label": "maybe"}))),
    "run: tested without a checkpoint": asked("test --run.dir run --data.test_source good.jsonl", r"run/checkpoints: no checkpoint", turned("run/checkpoints", gone)),
    "run: predicted without a checkpoint": asked("predict --run.dir run --data.predict_source good.jsonl", r"run/checkpoints: no checkpoint", turned("run/checkpoints", gone)),
    "run: exported without a checkpoint": asked(EXPORT, r"run: holds no checkpoint", turned("run/checkpoints", gone)),
    "run: exported without a tokenizer": asked(EXPORT, r"run/tokenizer: is missing", turned("run/tokenizer", gone)),
    "run: exported with half a shard": asked(EXPORT, r"checkpoint", cut(f"{STEP}/shard_00000.pt")),
    "run: exported onto a file": asked("export run --out good.jsonl", r"--out .*good\.jsonl: exists"),
    "run: exported below a file": asked("export run --out good.jsonl/x", r"--out .*cannot be written"),
    "run: exported from what is no run": asked("export run/tokenizer --out out", r"run/tokenizer: is not the folder of a run"),
    "run: exported with an option of others": asked(f"{EXPORT} --layers 2", r"--layers: model\.class = finetune"),
    "run: exported with a flag of others": asked(f"{EXPORT} --checkpoint 99", r"99"),
    "run: begun from one without checkpoints": asked("fit --run.dir run --run.checkpoint null --model.init_from other", r"model\.init_from|model\.untrained"),
}  # fmt: skip
