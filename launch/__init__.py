"""The command line. Before anything else, a run's folder is taken from where Python looks for modules.

`python -m launch` looks in the working directory first, so a run from elsewhere could bring a `yaml.py` along.
"""

import os
import sys

_places, sys.path[:] = [*sys.path], [os.path.dirname(os.path.dirname(__file__))]
from lightning_modules.core.foreign import without_runs  # noqa: E402

sys.path[:] = without_runs(_places)
LEFT_OUT = [place or os.curdir for place in _places if place not in sys.path]
