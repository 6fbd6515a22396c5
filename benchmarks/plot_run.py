"""Draw a run's curves from its metrics.jsonl: `python -m benchmarks.plot_run RUN FILE.png`."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = {
    "losses": ("train/generator_loss", "val/generator_loss"),
    "detection": ("train/auc", "val/auc"),
    "discriminator": ("train/discriminator_loss", "val/discriminator_loss"),
}


def main(run: Path, picture: Path) -> None:
    """Draw one panel for each group of values that the run has."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3), layout="constrained")
    for axis, names in zip(axes, PANELS.values(), strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            axis.plot(*zip(*points, strict=True), marker="o" if name.startswith("val") else None, label=name, alpha=0.8)
        axis.set_xlabel("optimizer steps")
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
