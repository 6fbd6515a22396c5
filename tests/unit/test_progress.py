"""What is told of a run: its loss from the first step on, with its step, and the time that is left."""

import re
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from callbacks import progress
from callbacks.progress import Pace, Progress, duration
from callbacks.run_record import epochs_told
from callbacks.throughput import Throughput
from tests.runs import metrics
from tests.unit.test_step import small, train


def told(folder: Path, capfd: pytest.CaptureFixture, every: int, steps: int = 5, **options) -> list[str]:
    """Train for some steps and return what was printed."""
    parts = [Progress(**options), Throughput()]
    train(small(), [8], steps, str(folder), callbacks=parts, log_every_n_steps=every)
    return capfd.readouterr().out.splitlines()


def test_a_run_of_seconds_shows_its_loss_at_both_ends(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    first, last = told(tmp_path, capfd, every=100)
    assert re.fullmatch(r"step 1/5 loss \d\d\.\d\d left \d\d:\d\d", first)
    assert re.fullmatch(r"step 5/5 loss \d\d\.\d\d", last)
    assert first.split()[3] != last.split()[3]


def test_a_line_says_of_which_step_its_loss_is(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    lines = told(tmp_path, capfd, every=2, every_n_seconds=0)
    assert [re.findall(r"\(step \d\)", line) for line in lines] == [[], [], ["(step 2)"], [], []]
    losses = {line["step"]: line["train/loss"] for line in metrics(tmp_path)}
    assert [*losses] == [2, 4], "what is shown beside is not logged: a run that was stopped has the same file"
    assert f"loss {losses[2]:.2f} " in lines[1] and f"loss {losses[2]:.2f} (step 2)" in lines[2]
    assert "tokens/s" not in lines[0] and "tokens/s" in lines[2]


def test_measuring_the_first_step_changes_no_weight(tmp_path: Path) -> None:
    ends = []
    for every in (1, 100):
        method = small()
        train(method, [4, 4], 4, str(tmp_path), log_every_n_steps=every)
        ends.append([p.detach() for p in method.parameters()])
    assert all((one == other).all() for one, other in zip(*ends, strict=True))


def test_significant_digits(tmp_path: Path) -> None:
    module, trainer = small(), Trainer(logger=False, enable_checkpointing=False, max_steps=3)
    for value, shown in ((0.003116, "0.003116"), (0.0, "0.000"), (29.28171, "29.28"), (3e-3, "0.003000")):
        module.logged = {"train/loss": value}
        assert progress.numbers(trainer, module) == [f"loss {shown}"]


def test_time_left_follows_the_recent_speed() -> None:
    pace, now = Pace(), 100.0
    for seconds in (60.0, *[1.0] * 60):  # the first step compiles
        now += seconds
        pace.step_ended(now, now - seconds)
    assert pace.seconds_for(100) == pytest.approx(100)
    for _ in range(20):  # somebody takes the cores
        now += 10.0
        pace.step_ended(now, now - 10.0)
    assert 850 < pace.seconds_for(100) < 1000
    for _ in range(100):
        now += 1.0
        pace.step_ended(now, now - 1.0)
    assert 100 < pace.seconds_for(100) < 150


def test_a_validation_counts_with_its_share() -> None:
    pace, now = Pace(), 100.0
    for step in range(1, 101):
        began = now + (50.0 if step % 50 == 1 and step > 1 else 0.0)  # of fifty seconds, after every fifty steps
        now = began + 1.0
        pace.step_ended(now, began)
    assert pace.seconds_for(1000) == pytest.approx(1500)


def test_one_step_is_a_speed_too() -> None:
    pace = Pace()
    assert pace.seconds_for(10) == 0.0
    pace.step_ended(107.0, 100.0)
    assert pace.seconds_for(10) == pytest.approx(70)


def test_a_run_of_days_is_told_in_words(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [duration(s) for s in (59, 3601, 86399)] == ["00:59", "1:00:01", "23:59:59"]
    assert [duration(s * 3600) for s in (36, 18442)] == ["1.5 days", "2.1 years"]
    monkeypatch.setattr(progress, "DAY", 1e-9)
    lines = told(tmp_path, capfd, every=1)
    assert len(lines) == 3
    assert re.fullmatch(r"2 steps are left and take [\d.,]+ years at the speed .*trainer.max_steps .*", lines[1])


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({}, ""),
        ({"": 3.004}, " = 3.00 epochs"),
        ({"": 0.0412}, " = 0.04 epochs"),
        ({"": 3412.7}, " = 3,413 epochs"),
        ({"nli": 2.0, "sts": 1.9999}, " = 2.00 epochs"),
        ({"nli": 2.0, "sts": 14.2}, " = 2.00 epochs of nli, 14 epochs of sts"),
    ],
)
def test_steps_are_told_in_epochs(found: dict[str, float], told: str) -> None:
    assert epochs_told(found) == told
