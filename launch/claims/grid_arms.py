"""The runs of a claim that the grid judges: equal steps, data and learning rate; models of a cell's own size."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from launch.claims.arms import LOGGED_STEPS, Run, merged, refuse_other
from launch.claims.grid_plan import SEPARATE, GridClaim, GridSize, Part, PartSize
from launch.config.errors import ConfigError
from launch.config.overlay import find_file
from launch.run_folder import write_whole

Cell = tuple[int, int]  # layers and width


class Planned(NamedTuple):
    """A run, and what it is of."""

    run: Run
    group: str
    arm: str
    cell: Cell | None  # of a model of its own size


class GridArms:
    """The runs of one part at one size; `sets` judge, `root` is the data root, `folder` is where the runs live."""

    def __init__(
        self, claim: GridClaim, size: GridSize, name: str, sets: dict[str, Any], root: Path | None, folder: Path
    ) -> None:
        self.claim, self.seeds, self.sets, self.root = claim, size.seeds, sets, root
        self.part: Part = claim.parts[name]
        self.size: PartSize = size.parts[name]
        self.base = str(find_file(self.part.base).resolve())
        self.folder = (folder / name).resolve()

    def planned(self) -> list[Planned]:
        """Plan all runs, those that decide first, and write their overlays.

        Raises:
            ConfigError: a folder holds a run with other settings, or the encoder has no such cell.
        """
        found = []
        for group, arms in self.claim.arms.items():
            for seed in self.seeds[group]:
                for arm, overlay in arms.items():
                    found.append(Planned(self.run(arm, seed, self.started(overlay)), group, arm, None))
        plain = self.claim.arms[self.claim.group(self.claim.worse)][self.claim.worse]
        for cell in map(tuple, self.size.separate):
            arm, overlay = f"{SEPARATE}_{cell[0]}x{cell[1]}", merged(plain, self.own_size(cell))
            found += [Planned(self.run(arm, s, overlay), SEPARATE, arm, cell) for s in self.seeds[SEPARATE]]
        return found

    def run(self, arm: str, seed: int, overlay: dict[str, Any]) -> Run:
        """Plan one run, and write what is laid over its base."""
        settings = merged(self.settings(seed), overlay)
        name = f"{arm}_seed{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{name}.yaml"
        write_whole(file, yaml.safe_dump(settings, sort_keys=False))
        words = ("--config", self.base, "--config", str(file))
        model, trainer = settings["model"], settings["trainer"]
        run = Run(arm, seed, model["learning_rate"], trainer["max_steps"], self.folder / name, words)
        refuse_other(run)
        return run

    def settings(self, seed: int) -> dict[str, Any]:
        """Return what is laid over the base for every arm alike; the sets are judged once, after the last step."""
        steps = self.size.steps
        schedule = {
            "seed": seed,
            "model": {
                "learning_rate": self.size.learning_rate,
                "warmup_steps": round(self.size.warmup_fraction * steps),
            },
            "data": {"validation": self.sets, **({"root": str(self.root)} if self.root else {})},
            "trainer": {"max_steps": steps, "log_every_n_steps": max(1, steps // LOGGED_STEPS)},
            "callbacks": {
                "validation": {"every_n_steps": steps},
                "checkpoint": {"every_n_steps": max(1, steps // 2), "keep_last": 1, "keep_every_n_steps": None},
                "grid": {},
            },
        }
        return merged(merged(schedule, self.part.settings), self.size.settings)

    def started(self, overlay: dict[str, Any]) -> dict[str, Any]:
        """Let an arm start from the pretrained encoder, where the part has one."""
        if self.part.encoder is None:
            return overlay
        layers = self.size.encoder_layers
        source = self.part.encoder if layers is None else self.cut(layers)
        return merged(overlay, {"model": {"init_from": source}})

    def own_size(self, cell: Cell) -> dict[str, Any]:
        """Return what makes the plain model one of a cell's own size.

        Untrained, it has that depth and width, and heads of the same size. Pretrained, it starts from the first layers
        of the encoder, and its loss sees the first coordinates alone.
        """
        layers, width = cell
        grid = {"callbacks": {"grid": {"layers": [layers], "dims": [width]}}}
        if self.part.encoder is not None:
            model = {"mode": "matryoshka_1d", "objective": {"widths": [width]}, "init_from": self.cut(layers)}
            return {"model": model, **grid}
        whole = merged(self.part.settings, self.size.settings)["model"]["untrained"]
        heads = max(1, width * whole["num_heads"] // whole["hidden_size"])
        return {"model": {"untrained": {"hidden_size": width, "num_layers": layers, "num_heads": heads}}, **grid}

    def cut(self, layers: int) -> str:
        """Write the pretrained encoder's first layers as a Hugging Face folder, once, and return it.

        Raises:
            ConfigError: it has not so many.
        """
        folder = self.folder / f"encoder_of_{layers}_layers"
        if (folder / "config.json").is_file():
            return str(folder)
        from transformers import AutoConfig, AutoTokenizer
        from transformers.utils import logging

        from lightning_modules.core.encoder_sources import load_encoder
        from lightning_modules.core.encoders import bare_network, cut
        from lightning_modules.core.export import save_network
        from lightning_modules.core.source_files import weights_folder

        logging.disable_progress_bar()
        source = weights_folder(self.part.encoder)
        network = bare_network(AutoConfig.from_pretrained(source, trust_remote_code=False))
        load_encoder(network, source)
        try:
            shallow = cut(network, layers)
        except ValueError as error:
            raise ConfigError(f"{self.part.encoder}: {error}") from None
        part = folder.with_name(f".{folder.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        save_network(shallow, part, AutoTokenizer.from_pretrained(source, trust_remote_code=False))
        part.rename(folder)
        return str(folder)
