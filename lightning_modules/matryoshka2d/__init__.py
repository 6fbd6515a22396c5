"""2D Matryoshka; what is used without training comes by its short name, and only when it is asked for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.matryoshka2d.encoder import MatryoshkaEncoder, measure_speed
    from lightning_modules.matryoshka2d.mteb_adapter import MtebEncoder

__all__ = ["MatryoshkaEncoder", "MtebEncoder", "measure_speed"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: the configuration's rules of this method must not bring torch with them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    place = "mteb_adapter" if name == "MtebEncoder" else "encoder"
    return getattr(import_module(f"{__name__}.{place}"), name)
