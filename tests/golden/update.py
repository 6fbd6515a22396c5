"""Write the golden values anew: `python -m tests.golden.update`."""

import json
import tempfile

import torch

from tests.golden.electra_run import GOLDEN, golden, kept_units


def main() -> None:
    """Train both forms and replace the file."""
    values: dict[str, object] = {"torch": torch.__version__, "kept_units": kept_units()}
    for form in ("clean", "as_released"):
        with tempfile.TemporaryDirectory() as folder:
            values[form] = golden(form, folder)
    text = json.dumps(values, indent=1)
    GOLDEN.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
