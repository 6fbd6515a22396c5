"""What a logger is told about a run besides its numbers."""

from typing import NamedTuple

Value = bool | int | float | str


class Papers(NamedTuple):
    """Name and origin of a run; the launcher fills it in."""

    name: str
    command: str
    commit: str  # of the code, with the number of files that differ from it
    config: str  # YAML, each value with its source
    values: dict[str, Value]  # the same, flat: `model.learning_rate` and so on

    def texts(self) -> dict[str, str]:
        """Return what is not a number, by name."""
        return {"command": self.command, "commit": self.commit, "configuration": self.config}
