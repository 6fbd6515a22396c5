"""LightningCLI as the second pass: it types the checked values again, with the real classes, and instantiates them.

The classes are chosen before it exists, so its options are flat and its messages name one key.
"""

import logging
import re
import warnings
from typing import Any, NoReturn

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.run_record import RunRecord
from launch.classes import imported, limit_imports
from launch.config.defaults import FIXED_TRAINER
from launch.config.errors import ConfigError, one_line
from launch.config.read import Table
from launch.config.resolved import Resolved, check_ranks
from launch.config.show import named
from launch.guard import Begun, Guard
from launch.jobs.environment import cluster_plugins
from launch.papers import papers_of
from launch.run_folder import RunFolder
from launch.trainer import Trainer

for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # seeds, devices and tips at every start
logging.getLogger("lightning.pytorch.callbacks.model_summary").setLevel(logging.INFO)  # there for who asks for it
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)  # between torch and Lightning
KEY = re.compile(r'(?:Parser )?key "([\w.]+)":? *|option \'([\w.]+)\'', re.IGNORECASE)
DENIED = re.compile(r"Importing '([^']*)' is not allowed, denied by ")
SUBTYPES = re.compile(r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors:.*")


class Parser(LightningArgumentParser):
    """A parser whose mistakes are ConfigErrors of one line."""

    resolved: Resolved

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what the parser would print with its usage and exit code 2."""
        raise ConfigError(translated(message, self.resolved.table)) from ex

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Take no value for the name of a file with options: `source: pairs.csv` would be replaced by the content."""
        return super().add_class_arguments(*args, **{**kwargs, "sub_configs": False})


def translated(message: str, table: Table) -> str:
    """Return a message of jsonargparse as one line that begins with the key, its value and its source.

    Two of its patterns are read; a message with neither comes back as it is, on one line.
    """
    whole = " ".join(message.split())
    words = whole.split(" Given value")[0]
    match = KEY.search(words)
    if denied := DENIED.search(whole):
        words = f"{match[0] if match else ''}{denied[1]} may not be named here: functions never, classes by class_path"
    elif union := SUBTYPES.search(words):
        kinds = [re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", kind) for kind in union[1].split(", ")]
        words = words[: union.start()] + f"expected {' or '.join(kinds)}"
    key = tuple((match[1] or match[2]).split(".")) if match else ("",)
    for path, entry in table.items():
        if path[: len(key)] == key:
            return f"{named(path, entry)}: {words.replace(match[0], '') if match[1] else words}"
    return words


class Cli(LightningCLI):
    """Trainer, model and data of one resolved configuration; `run()` runs the command.

    Raises:
        ConfigError: the real classes want other values than their source said, or a class is of the wrong sort.
    """

    def __init__(
        self, command: str, resolved: Resolved, checkpoint: str | None = None, folder: RunFolder | None = None
    ) -> None:
        self.command, self.resolved, self.checkpoint = command, resolved, checkpoint
        self.folder = folder or RunFolder(resolved.run_dir)
        chosen = [part for part in resolved.parts.paths if part not in (("run",), ("trainer",))]
        self.parts = {".".join(part): imported(resolved.parts, part) for part in chosen}
        limit_imports(resolved.parts, [Trainer, *self.parts.values()])
        self.record = RunRecord(papers_of(resolved) if command == "fit" else None)
        super().__init__(
            self.parts["model"],
            self.parts["data"],
            trainer_class=Trainer,
            save_config_callback=None,
            seed_everything_default=resolved.get("seed"),
            parser_class=type("BoundParser", (Parser,), {"resolved": resolved}),
            args={},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def run(self) -> Any:
        """Call the trainer's method of the command's name and return its result."""
        return getattr(self.trainer, self.command)(self.model, datamodule=self.datamodule, ckpt_path=self.checkpoint)

    def subcommands(self) -> dict[str, set[str]]:
        """Only the one that runs."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the parts that LightningCLI does not know."""
        for key, part in self.parts.items():
            if key.startswith("callbacks."):
                parser.add_lightning_class_args(part, key)
            elif key.startswith("loggers."):
                parser.add_class_arguments(part, key)
            elif key == "strategy":
                add = parser.add_class_arguments if isinstance(part, type) else parser.add_function_arguments
                add(part, key, **({"instantiate": False} if isinstance(part, type) else {}))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Hand the checked values over as they are: a file would lose their types."""
        values = {
            key: _without_class(value) for key, value in self.resolved.values.items() if key not in ("seed", "run")
        }
        for name, options in values.get("loggers", {}).items():
            signature = self.resolved.parts.signatures.get(("loggers", name))  # none if null took it out
            if signature and "folder" in signature.fields:
                options["folder"] = options.get("folder") or str(self.resolved.run_dir)
        self.config = parser.parse_object({"subcommand": self.command, self.command: _without_empty(values)})
        for key, entry in self.resolved.table.items():
            name = ".".join((self.command, *key))
            if isinstance(entry.value, str) and self.config.get(name, "") is None:  # "null" where null may stand
                self.config[name] = entry.value

    def _parse_ckpt_path(self) -> None:
        """A checkpoint never overrides the configuration (Lightning-AI/pytorch-lightning#20801)."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Not in the constructor: what fails before the run has no attempt to be written down."""

    def instantiate_classes(self) -> None:
        """Make all parts; what one of them says against its options is said in one line."""
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ImportError, ValueError) as error:  # also a package that is not installed
            raise ConfigError(f"a part cannot be made: {one_line(error)}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with our strategy and loggers."""
        parts = self.config_init[self.command]
        loggers = parts.get("loggers") or {}
        trainer = super().instantiate_trainer(
            logger=list(loggers.values()) if self.command == "fit" else False,
            strategy=self._strategy(parts.get("strategy") or {}),
            plugins=cluster_plugins(),
            default_root_dir=str(self.resolved.run_dir),
            **({"limit_val_batches": 0} if self.command == "fit" else {}),
            **FIXED_TRAINER,
            **kwargs,
        )
        _leave_signals_alone(trainer)
        return trainer

    def _strategy(self, options: dict[str, Any]) -> Any:
        try:
            return self.parts["strategy"](**options)
        except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
            name = self.resolved.get("strategy.class")
            raise ConfigError(f"strategy.class = {name}: cannot be made: {one_line(error)}") from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if self.command == "fit":
            guard = Guard(self.resolved, self.checkpoint, self.folder)
            callbacks = [guard, *callbacks, self.record, Begun(self.resolved, guard.resumes, self.folder)]
        config["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in callbacks)
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, ValueError, TypeError) as error:  # the Trainer's own checks of its options
            raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error

    def after_instantiate_classes(self) -> None:
        """Give both sides the seed, and apply the rules that had to wait for the number of ranks."""
        check_ranks(self.resolved, self.trainer.world_size)
        self.model.seed = self.datamodule.seed = self.resolved.get("seed")
        self.model.goes_on = self.checkpoint is not None
        if self.command == "fit":
            self.model.block_options = self.trainer.block_options


def _without_class(value: Any) -> Any:
    """Take the reserved word `class`, and parts that null took out, from a part's options."""
    if not isinstance(value, dict):
        return value
    return {k: _without_class(v) for k, v in value.items() if k != "class"}


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    named_parts = {
        group: {k: v for k, v in (values.get(group) or {}).items() if v} for group in ("callbacks", "loggers")
    }
    return {key: value for key, value in {**values, **named_parts}.items() if value}


def _leave_signals_alone(trainer: Trainer) -> None:
    """Keep Lightning's handlers off: they raise in the middle of a step and no checkpoint is written.

    Its flag is then never set, so the broadcast of it, a wait for the device in every step, is not needed either
    (Lightning-AI/pytorch-lightning#21487).
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
