"""2D Matryoshka; what is used without training comes by its short name, and only when it is asked for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.matryoshka2d.costs import measure_speed
    from lightning_modules.matryoshka2d.encoder import MatryoshkaEncoder
    from lightning_modules.matryoshka2d.mteb_adapter import MtebEncoder
    from lightning_modules.matryoshka2d.record import add_costs

PLACES = {
    "MatryoshkaEncoder": "encoder",
    "MtebEncoder": "mteb_adapter",
    "add_costs": "record",
    "measure_speed": "costs",
}
__all__ = ["MatryoshkaEncoder", "MtebEncoder", "add_costs", "measure_speed"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: the configuration's rules of this method must not bring torch with them."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
