"""What TensorBoard shows of runs, read by TensorBoard itself: names, texts, and the tab HPARAMS."""

from pathlib import Path

import pytest
from lightning import LightningDataModule, Trainer
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

from callbacks.loggers import TensorBoard
from callbacks.papers import Papers
from datamodules.core.errors import DataError
from lightning_modules.electra.module import Electra
from tests.forked import train

PAPERS = Papers(
    "own", "python -m launch fit", "abc, 2 files differ", "seed: 1\nmodel:\n  class: electra\n", {"seed": 1}
)


def shown(logdir: Path) -> EventMultiplexer:
    """Read all runs below a folder, as `tensorboard --logdir` does."""
    found = EventMultiplexer().AddRunsFromDirectory(str(logdir))
    found.Reload()
    return found


def table(found: EventMultiplexer) -> dict[str, tuple[dict, dict]]:
    """Return what the tab HPARAMS shows: by run its hyper-parameters and its metrics."""
    tab = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(found, "logs")))
    experiment = get_experiment.Handler(
        RequestContext(), tab, "", api_pb2.GetExperimentRequest(include_metrics=True)
    ).run()
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=100,
        include_metrics=True,
        allowed_statuses=list(api_pb2.Status.values()),
        col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
    )
    groups = list_session_groups.Handler(RequestContext(), tab, "", request).run().session_groups
    assert len({info.name for info in experiment.hparam_infos}) == len(experiment.hparam_infos)
    return {
        group.sessions[0].name: (
            {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()},
            {value.name.tag: (value.value, value.training_step) for value in group.metric_values},
        )
        for group in groups
    }


def test_runs_have_their_own_names_and_rows_of_hyperparameters_with_their_newest_values(tmp_path):
    for name, rate in (("slow", 1e-4), ("fast", 1e-2)):
        logger = TensorBoard(str(tmp_path / "electra" / name))
        logger.log_papers(PAPERS._replace(values={"model.learning_rate": rate, "data.source": "['a']"}), 0)
        for step in (1, 2):
            logger.log_metrics({"train/loss": rate * step, "val/auc": 0.5}, step=step)
        logger.finalize("success")
    rows = table(shown(tmp_path))
    assert rows.keys() == {"electra/slow", "electra/fast"}
    assert rows["electra/fast"][0] == {"model.learning_rate": 1e-2, "data.source": "['a']"}
    assert rows["electra/slow"][1]["train/loss"] == (pytest.approx(2e-4), 2)
    assert rows["electra/fast"][1].keys() == {"train/loss", "val/auc"}


def test_every_attempt_leaves_its_command_commit_and_configuration_as_text(tmp_path):
    for step, command in ((0, "first"), (500, "second")):
        logger = TensorBoard(str(tmp_path))
        logger.rewind(step)
        logger.log_papers(PAPERS._replace(command=command), step)
        logger.finalize("success")
    found = EventAccumulator(str(tmp_path)).Reload()
    texts = {
        name: [(e.step, e.tensor_proto.string_val[0].decode()) for e in found.Tensors(f"run/{name}/text_summary")]
        for name in ("command", "commit", "configuration")
    }
    assert texts["command"] == [(1, "    first\n"), (501, "    second\n")]
    assert texts["commit"][0] == (1, "    abc, 2 files differ\n")
    assert texts["configuration"][1] == (501, "    seed: 1\n    model:\n      class: electra\n")


class Refused(LightningDataModule):
    """Data that is not there."""

    def setup(self, stage: str) -> None:
        raise DataError("no such file")


def test_a_start_that_fails_is_no_run(tmp_path):
    logger = TensorBoard(str(tmp_path))
    with pytest.raises(DataError):
        Trainer(logger=logger, accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path).fit(
            Electra(), Refused()
        )
    assert not list(tmp_path.iterdir())


def test_a_run_that_began_in_a_folder_of_its_own_goes_on_there(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    logger = TensorBoard(str(tmp_path))
    logger.log_metrics({"a": 1.0}, step=1)
    logger.finalize("success")
    assert [file.name for file in tmp_path.iterdir()] == ["tensorboard"]
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("a")[0].value == 1.0


def test_a_file_where_the_folder_was_is_refused(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(DataError, match=r"tensorboard: is not a folder; move it away"):
        TensorBoard(str(tmp_path))


def test_a_real_run_and_its_going_on_fill_the_tab_and_the_texts(tmp_path):
    run = tmp_path / "runs" / "electra" / "own"
    words = ["--config", "configs/electra/debug.yaml", "--callbacks.checkpoint.every_n_steps", "2"]
    train(run, 1, *words, "--trainer.max_steps", "2")
    train(run, 1, *words, "--trainer.max_steps", "4")
    found = shown(tmp_path / "runs")
    values, metrics = table(found)["electra/own"]
    assert values["model.class"] == "electra" and values["trainer.max_steps"] == 2.0
    assert values["model.learning_rate"] > 0 and "run.dir" not in values
    assert metrics["train/loss"][1] == metrics["perf/tokens_per_s"][1] == 4 and "val/loss" in metrics
    texts = found.Tensors("electra/own", "run/configuration/text_summary")
    assert [text.step for text in texts] == [1, 3] and b"max_steps: 4" in texts[1].tensor_proto.string_val[0]
    panel = found.Tensors("electra/own", "electra/sentences/text_summary")[0].tensor_proto.string_val[0].decode()
    assert panel.count("**judged** \u2068") == 2 and "##" not in panel and ("(missed, " in panel or "(found, " in panel)
    log = (run.parent / "own_out_0.txt").read_text()
    assert f"curves: tensorboard --logdir {tmp_path / 'runs'}\n" in log
