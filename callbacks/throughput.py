"""How fast the run is: tokens, pairs, padding, waiting for data, share of the device's peak."""

from dataclasses import dataclass

import torch
from lightning import Callback, LightningModule, Trainer

from datamodules.core.batches import TextBatch

# Dense bf16 matrix-multiply peaks by device name, in TFLOP/s, from the makers' data sheets
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "V100": 125.0}


@dataclass
class Window:
    """What one rank did since the values were last logged, and how long it took."""

    tokens: int = 0
    padded: int = 0  # tokens if every micro-batch were padded to its longest sequence
    pairs: int = 0
    flops: float = 0.0
    seconds: float = 0.0  # in steps
    waited: float = 0.0  # between steps, for the loader

    def count(self, batch: TextBatch) -> None:
        """Add a micro-batch, whose first sequence is its longest."""
        self.tokens += sum(batch["lens"])
        self.padded += len(batch["lens"]) * batch["lens"][0]
        self.pairs += len(batch.get("label_P", ()))

    def values(self, ranks: int, peak_tflops: float | None) -> dict[str, float]:
        """Return what is logged; ranks hold like shares of a batch, and each has a device of its own."""
        seconds = self.seconds + self.waited
        values = {
            "perf/tokens_per_s": self.tokens * ranks / seconds,
            "perf/pad_fraction": 1 - self.tokens / self.padded,
            "perf/data_wait_fraction": self.waited / seconds,
        }
        if self.pairs:
            values["perf/pairs_per_s"] = self.pairs * ranks / seconds
        if self.flops and peak_tflops:
            values["perf/mfu"] = self.flops / seconds / (peak_tflops * 1e12)
        return values


class Throughput(Callback):
    """Log how fast the run is, over the steps since the values were last logged.

    | name | meaning |
    |---|---|
    | perf/tokens_per_s | real tokens a second of this rank times the ranks, which hold like shares |
    | perf/pairs_per_s | examples a second, likewise, where they are pairs (with their hard negatives) |
    | perf/pad_fraction | share of padding if every micro-batch were padded to its longest sequence; none is computed |
    | perf/data_wait_fraction | share of the time in which the step waited for the loader |
    | perf/mfu | share of the device's dense bf16 peak, where the device and the method's operations are known |

    Args:
        peak_tflops: Peak of one device in TFLOP/s; by default known from the device's name.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        self.peak_tflops = peak_tflops
        self.tokens_per_s = 0.0
        self._window = Window()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the device's peak and start the clock."""
        if self.peak_tflops is None and module.device.type == "cuda":
            name = torch.cuda.get_device_name(module.device)
            self.peak_tflops = next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)
        module.step_ended = module.clock()
        self._window = Window()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: list, *_: object) -> None:
        """Count what the batch holds, and the time since the last step ended."""
        self._began = module.clock()
        self._window.waited += self._began - module.step_ended
        for micro in batch:
            self._window.count(micro)
            if self.peak_tflops and hasattr(module, "flops"):
                self._window.flops += module.flops(micro)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Log on the steps on which the method logs; by then the device has caught up."""
        self._window.seconds += module.clock() - self._began  # before callbacks that save or evaluate
        if trainer.global_step % trainer.log_every_n_steps:
            return
        values = self._window.values(trainer.world_size, self.peak_tflops)
        self.tokens_per_s = values["perf/tokens_per_s"]
        module.log_values(values)
        self._window = Window()
