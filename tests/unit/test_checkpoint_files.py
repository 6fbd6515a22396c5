"""Files of a checkpoint: what is whole, what is refused, what is read."""

import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from launch.checkpoints import choose
from lightning_modules.core.checkpoint import publish
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.publish import Save, begin, discard_leftovers, remove, write_file
from lightning_modules.core.checkpoint.reader import Reader, read_weights
from lightning_modules.core.checkpoint.verify import complete_steps, newest_complete, seal, step_folder, verify

WEIGHT = torch.arange(15.0).reshape(3, 5)
STEP = torch.tensor(7.0)


def piece(start: int, stop: int, key_count: int = 2) -> dict:
    tensors = {"param": WEIGHT.view(-1)[start:stop].clone(), "exp_avg": -WEIGHT.view(-1)[start:stop]}
    tensors = dict(list(tensors.items())[:key_count])
    return {"start": start, "shape": [3, 5], "scalars": {"step": STEP}, "tensors": tensors}


def save(checkpoints: Path, step: int, shards: list[dict]) -> Path:
    final = step_folder(checkpoints, step)
    temp = begin(final)
    assert temp is not None
    for rank in reversed(range(len(shards))):
        part = Save(final, temp, rank, len(shards))
        part.shard, part.whole = shards[rank], {"buffers": {"seen": torch.tensor([float(step)])}}
        part.facts = {"step": step, "strategy": "test", "skipped_steps": []}
        part.thread.start()
        part.thread.join()
        assert part.error is None
    return final


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    for step in (1, 2):
        save(tmp_path, step, [{"w": piece(0, 8)}, {"w": piece(8, 15)}])
    return tmp_path


def reseal(folder: Path, name: str) -> None:
    """Do what a forger would do: make the manifest fit the changed file."""
    manifest = json.loads((folder / "manifest.json").read_text())
    facts = write_file(folder / "scratch", None)  # only for its shape
    data = (folder / name).read_bytes()
    manifest["files"][name] = {**facts, "size": len(data), "sha256": publish.hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": seal(manifest)}))


MARK = str(Path(tempfile.gettempdir()) / "this_must_never_exist")


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, (MARK,)


def carry_code(folder: Path) -> None:
    torch.save({"w": Bomb()}, folder / "shard_00001.pt")
    reseal(folder, "shard_00001.pt")


def bare_pickle(folder: Path) -> None:
    (folder / "trainer.pt").write_bytes(pickle.dumps(Bomb()))
    reseal(folder, "trainer.pt")


def overwrite(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def rewrite(**changes: object) -> Callable[[Path], object]:
    """Return what changes the manifest and seals it again."""

    def change(folder: Path) -> None:
        manifest = {**json.loads((folder / "manifest.json").read_text()), **changes}
        (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": seal(manifest)}))

    return change


def pipe(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


DAMAGES = {
    "manifest.json: is no ordinary file": pipe,
    "manifest.json: files = None, which no checkpoint has": rewrite(files=None),
    "manifest.json: step = 'x', expected a whole number": rewrite(step="x"),
    "manifest.json: files = {'shard_00000.pt'": rewrite(world_size=3),
    "manifest.json: is of step 1, its folder was renamed": rewrite(step=1),
    "manifest.json: is not JSON (maximum recursion": overwrite("manifest.json", b'{"a":' * 100_000),
    "trainer.pt: is missing": lambda folder: (folder / "trainer.pt").unlink(),
    "shard_00000.pt: has 5 bytes": overwrite("shard_00000.pt", b"short"),
    "manifest.json: No such file": lambda folder: (folder / "manifest.json").unlink(),
    "manifest.json: is not JSON": overwrite("manifest.json", b"{half"),
    "manifest.json: was changed after": overwrite("manifest.json", b'{"step": 3}'),
    "shard_00001.pt: refused, it carries code": carry_code,
    "trainer.pt: cannot be read": bare_pickle,
}


@pytest.mark.parametrize(("complaint", "damage"), DAMAGES.items())
def test_damage_is_named_and_passed_over(
    checkpoints: Path, complaint: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    newest, older = step_folder(checkpoints, 2), step_folder(checkpoints, 1)
    assert newest_complete(checkpoints) == newest
    damage(newest)
    with pytest.raises(CheckpointError, match=re.escape(complaint)) as caught:
        verify(newest)
    assert str(newest) in str(caught.value) and "\n" not in str(caught.value)
    assert newest_complete(checkpoints) == older
    assert complaint in caplog.text
    assert not Path(MARK).exists()


def test_shares_of_the_ranks_cover_all_files(checkpoints: Path) -> None:
    folder = step_folder(checkpoints, 2)
    for name in ("shard_00000.pt", "shard_00001.pt", "trainer.pt"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        faults = 0
        for rank in range(2):
            try:
                verify(folder, rank, 2)
            except CheckpointError as error:
                faults += name in str(error)
        assert faults == 1
        (folder / name).write_bytes(good)


def test_reads_any_range_and_refuses_a_gap(tmp_path: Path) -> None:
    whole = save(tmp_path, 1, [{"w": piece(0, 6)}, {"w": piece(6, 11)}, {"w": piece(11, 15)}])
    for start in range(15):
        for stop in range(start, 16):
            target = torch.full((stop - start,), torch.nan)
            Reader(whole, 3).read_into("w", "exp_avg", start, target)
            assert torch.equal(target, -WEIGHT.view(-1)[start:stop])
    gap = Reader(save(tmp_path, 2, [{"w": piece(0, 6)}, {"w": piece(8, 15)}]), 2)
    gap.read_into("w", "param", 8, torch.empty(7))
    with pytest.raises(CheckpointError, match="param of w is in no shard from element 6 on"):
        gap.read_into("w", "param", 0, torch.empty(15))
    with pytest.raises(CheckpointError, match="in no shard from element 15 on"):
        gap.read_into("w", "param", 8, torch.empty(8))
    partial = Reader(save(tmp_path, 3, [{"w": piece(0, 8)}, {"w": piece(8, 15, key_count=1)}]), 2)
    with pytest.raises(CheckpointError, match=r"shard_00001.pt: holds no exp_avg for w"):
        partial.read_into("w", "exp_avg", 0, torch.empty(15))


def test_names_and_shapes_must_match(checkpoints: Path) -> None:
    reader = Reader(step_folder(checkpoints, 1), 2)
    reader.match({"w": [3, 5]})
    with pytest.raises(CheckpointError, match="the checkpoint lacks v"):
        reader.match({"w": [3, 5], "v": [1]})
    with pytest.raises(CheckpointError, match="the model lacks w"):
        reader.match({})
    with pytest.raises(CheckpointError, match=r"w has shape \[3, 5\], in the model it is \[5, 3\]"):
        reader.match({"w": [5, 3]})


def test_read_weights(checkpoints: Path) -> None:
    weights: dict[str, Tensor] = read_weights(step_folder(checkpoints, 2))
    assert sorted(weights) == ["seen", "w"]
    assert torch.equal(weights["w"], WEIGHT) and weights["seen"].item() == 2.0


def test_a_whole_step_is_not_saved_again_and_a_damaged_one_is(checkpoints: Path) -> None:
    folder = step_folder(checkpoints, 2)
    assert begin(folder) is None
    (folder / "trainer.pt").write_bytes(b"")
    save(checkpoints, 2, [{"w": piece(0, 15)}])
    assert verify(folder)["world_size"] == 1


def test_leftovers_go_and_steps_stay(checkpoints: Path) -> None:
    temp = begin(step_folder(checkpoints, 3))
    assert temp is not None
    (temp / "shard_00000.pt").write_bytes(b"half")
    (checkpoints / ".best.1-1.tmp").symlink_to("step_00000001")
    assert complete_steps(checkpoints) == [1, 2] and newest_complete(checkpoints) == step_folder(checkpoints, 2)
    discard_leftovers(checkpoints)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_00000001", "step_00000002"]
    remove(step_folder(checkpoints, 2))
    assert [path.name for path in checkpoints.iterdir()] == ["step_00000001"]
    assert newest_complete(checkpoints / "nowhere") is None


def test_a_copied_folder_is_not_a_later_step(checkpoints: Path) -> None:
    shutil.copytree(step_folder(checkpoints, 2), step_folder(checkpoints, 9))
    assert newest_complete(checkpoints) == step_folder(checkpoints, 2)


def test_a_shard_that_is_no_mapping_is_refused(checkpoints: Path) -> None:
    folder = step_folder(checkpoints, 2)
    torch.save([1, 2], folder / "shard_00001.pt")
    reseal(folder, "shard_00001.pt")
    with pytest.raises(CheckpointError, match=r"shard_00001.pt: content = .list., which no checkpoint has"):
        read_weights(folder)


def test_later_steps_are_set_aside_and_kept(checkpoints: Path) -> None:
    before = (step_folder(checkpoints, 2) / "shard_00000.pt").read_bytes()
    assert publish.set_aside(checkpoints, 1) == [2]
    assert complete_steps(checkpoints) == [1] and publish.set_aside(checkpoints, 1) == []
    (kept,) = (checkpoints / "set_aside").iterdir()
    assert kept.name.startswith("step_00000002.") and (kept / "shard_00000.pt").read_bytes() == before
    save(checkpoints, 2, [{"w": piece(0, 15)}])
    assert publish.set_aside(checkpoints, 1) == [2] and len(list((checkpoints / "set_aside").iterdir())) == 2


GOOD = {"size": 5, "sha256": "0" * 64}
SEALED = {  # facts of a manifest that was sealed again -> what the message says
    "size": ({"files": {"trainer.pt": GOOD, "shard_00000.pt": 5}}, "shard_00000.pt = 5"),
    "no size": (
        {"files": {"trainer.pt": GOOD, "shard_00000.pt": {"sha256": "0" * 64}}},
        "size of shard_00000.pt = None",
    ),
    "no hash": ({"files": {"trainer.pt": GOOD, "shard_00000.pt": {"size": 5}}}, "sha256 of shard_00000.pt = None"),
    "hash": ({"files": {"trainer.pt": {**GOOD, "sha256": 7}, "shard_00000.pt": GOOD}}, "sha256 of trainer.pt = 7"),
    "long name": ({"files": {"trainer.pt": GOOD, "s" * 5000: GOOD}}, "files = 'sss"),
    "way out": ({"files": {"trainer.pt": GOOD, "../../config.yaml": GOOD}}, "files = '../../config.yaml'"),
    "ranks": ({"world_size": 10**12}, "world_size = 1000000000000, expected a whole number from 1 to"),
    "no ranks": ({"world_size": 0}, "world_size = 0, expected"),
    "fewer than none": ({"world_size": -1}, "world_size = -1, expected"),
    "truth": ({"world_size": True}, "world_size = True, expected"),
    "step": ({"step": 2.0}, "step = 2.0, expected"),
    "far": ({"step": 10**40}, "step = 1000000"),
    "skipped": ({"skipped_steps": ["x"]}, "skipped_steps = ['x']"),
    "run": ({"run": 3, "world_size": 2}, "run = 3"),
}


@pytest.mark.parametrize("name", SEALED)
def test_a_manifest_that_was_sealed_again_is_refused_by_its_form(checkpoints: Path, name: str) -> None:
    facts, message = SEALED[name]
    rewrite(**({"world_size": 1} | facts))(step_folder(checkpoints, 2))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        verify(step_folder(checkpoints, 2))
    assert newest_complete(checkpoints) == step_folder(checkpoints, 1)


def changed(**facts: object) -> dict:
    return {"w": piece(0, 8) | facts}


ROW = torch.zeros(8)
SHARDS = {
    "list": [1],
    "no start": {"w": {key: value for key, value in piece(0, 8).items() if key != "start"}},
    "no piece": {"w": 3},
    "one more": changed(more=1),
    "negative": changed(shape=[-1, 3]),
    "huge": changed(shape=[10**12, 10**12]),
    "word": changed(shape="abc"),
    "start": changed(start="0"),
    "beyond": changed(start=14),
    "flat": changed(tensors={"param": torch.zeros(2, 4)}),
    "number": changed(tensors={"param": 5.0}),
    "sparse": changed(tensors={"param": ROW.to_sparse()}),
    "no param": changed(tensors={"exp_avg": ROW}),
    "no tensors": changed(tensors=None),
    "scalars": changed(scalars=[1]),
    "scalar": changed(scalars={"step": "7"}),
    "whole state": changed(tensors={"param": ROW, "exp_avg": ROW.long()}),
    "complex": changed(tensors={"param": ROW.to(torch.complex64)}),
    "repeated": changed(tensors={"param": torch.zeros(1).expand(8)}),
    "unequal": changed(tensors={"param": ROW, "exp_avg": ROW[:4]}),
    "name": {3: piece(0, 8)},
}
WHOLES = {
    "whole list": [],
    "buffers": {"buffers": {"a": 3}},
    "optimizers": {"optimizers": {}},
    "lightning": {"lightning": 1},
    "optimizer": {"optimizers": [5]},
    "group": {"optimizers": [{"class": "AdamW", "groups": ["w"]}]},
    "no rate": {"optimizers": [{"class": "AdamW", "groups": [{"names": ["w"], "numbers": {}}]}]},
}


@pytest.mark.parametrize("name", [*SHARDS, *WHOLES])
def test_a_shard_that_was_sealed_again_is_refused_by_its_form(checkpoints: Path, name: str) -> None:
    folder, file = step_folder(checkpoints, 2), "shard_00000.pt" if name in SHARDS else "trainer.pt"
    torch.save((SHARDS | WHOLES)[name], folder / file)
    reseal(folder, file)
    with pytest.raises(CheckpointError, match=rf"{file}: .*which no checkpoint has|{file}: .*expected a whole number"):
        verify(folder)
    with pytest.raises(CheckpointError, match=file):
        read_weights(folder)
    assert newest_complete(checkpoints) == step_folder(checkpoints, 1)


@pytest.mark.parametrize(
    "facts",
    [
        {"shape": [5, 3]},
        {"tensors": {"param": torch.zeros(7).long(), "exp_avg": torch.zeros(7)}},
    ],
)
def test_shards_that_do_not_agree_are_refused(checkpoints: Path, facts: dict) -> None:
    folder = step_folder(checkpoints, 2)
    torch.save({"w": piece(8, 15) | facts}, folder / "shard_00001.pt")
    reseal(folder, "shard_00001.pt")
    with pytest.raises(CheckpointError, match=r"shard_00001\.pt: w has another shape or type than in shard_00000\.pt"):
        read_weights(folder)


def test_whole_numbers_are_no_weights(checkpoints: Path) -> None:
    reader = Reader(step_folder(checkpoints, 2), 2)
    with pytest.raises(CheckpointError, match=r"param of w is torch\.float32, in the model torch\.int64"):
        reader.read_into("w", "param", 0, torch.zeros(15, dtype=torch.int64))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody whom files are closed to")
def test_a_closed_folder_of_a_later_step_holds_no_run_up() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.chown(scratch, 65534, 65534)
        checkpoints = Path(scratch) / "checkpoints"

        def go_on() -> str:
            for step in (1, 2):
                save(checkpoints, step, [{"w": piece(0, 15)}])
            step_folder(checkpoints, 2).chmod(0)
            assert newest_complete(checkpoints) == step_folder(checkpoints, 1)
            assert publish.set_aside(checkpoints, 1) == []
            save(checkpoints, 2, [{"w": piece(0, 15)}])
            discard_leftovers(checkpoints)
            return f"{complete_steps(checkpoints)} {len(os.listdir(checkpoints))}"

        assert as_nobody(go_on) == "[1, 2] 2"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody whom files are closed to")
@pytest.mark.parametrize("closed", ["shard_00000.pt", "trainer.pt", "manifest.json", "."])
def test_what_cannot_be_read_is_damage(closed: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)
        checkpoints = Path(scratch) / "checkpoints"
        for step in (1, 2):
            save(checkpoints, step, [{"w": piece(0, 15)}])
        (step_folder(checkpoints, 2) / closed).chmod(0)
        assert as_nobody(lambda: str(newest_complete(checkpoints))) == str(step_folder(checkpoints, 1))
        assert "Permission denied" in as_nobody(lambda: complaint_of(step_folder(checkpoints, 2)))
        checkpoints.chmod(0)
        assert "checkpoints: cannot be listed (Permission denied)" in as_nobody(lambda: str(choose(checkpoints, None)))


def complaint_of(folder: Path) -> str:
    try:
        return str(verify(folder))
    except CheckpointError as error:
        return str(error)


def as_nobody(work: Callable[[], str]) -> str:
    """Run something in a process without rights, and return what it gives or complains of."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            found = work()
        except BaseException as error:
            found = f"{type(error).__name__}: {error}"
        os.write(writer, found.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        found = stream.read()
    os.waitpid(child, 0)
    return found
