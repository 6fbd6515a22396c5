"""Rules of the loggers, checked before anything is imported."""

import os
from collections.abc import Callable
from importlib.util import find_spec


def needs(module: str, package: str) -> Callable[[dict | None], str | None]:
    """Make the rule of a logger that is a package's."""

    def rule(options: dict | None) -> str | None:
        if options is None or find_spec(module) is not None:
            return None
        return f"needs the package {package}; install it with pip, or remove the logger with null"

    return rule


def addressed(address: str | None) -> str | None:
    """A server has an address."""
    if address or os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    return "give the address of a server, as http://localhost:5000, or set MLFLOW_TRACKING_URI"


RULES = [
    (("loggers.wandb",), needs("wandb", "wandb")),
    (("loggers.mlflow",), needs("mlflow", "mlflow-skinny")),
    (("loggers.mlflow.tracking_uri",), addressed),
]
