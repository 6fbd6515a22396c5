"""How fast the run is: tokens, padding, waiting for data, share of the device's peak."""

import time

import torch
from lightning import Callback, LightningModule, Trainer

# Dense bf16 matrix-multiply peaks by device name, in TFLOP/s, from the makers' data sheets
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "V100": 125.0}


class Throughput(Callback):
    """Log how fast the run is, over the steps since the values were last logged.

    | name | meaning |
    |---|---|
    | perf/tokens_per_s | real tokens a second of this rank times the ranks, which hold like shares |
    | perf/pad_fraction | share of padding if every micro-batch were padded to its longest sequence; none is computed |
    | perf/data_wait_fraction | share of the time in which the step waited for the loader |
    | perf/mfu | share of the device's dense bf16 peak, where the device and the method's operations are known |

    Args:
        peak_tflops: Peak of one device in TFLOP/s; by default known from the device's name.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        self.peak_tflops = peak_tflops
        self.tokens_per_s = 0.0
        self._reset()

    def _reset(self) -> None:
        self._tokens, self._padded, self._seconds, self._waited, self._flops = 0, 0, 0.0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the device's peak and start the clock."""
        if self.peak_tflops is None and module.device.type == "cuda":
            name = torch.cuda.get_device_name(module.device)
            self.peak_tflops = next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)
        module.step_ended = time.perf_counter()
        self._reset()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: list, *_: object) -> None:
        """Count what the batch holds, and the time since the last step ended."""
        self._began = time.perf_counter()
        self._waited += self._began - module.step_ended
        for micro in batch:
            lens = micro["lens"]
            self._tokens += sum(lens)
            self._padded += len(lens) * lens[0]
            if self.peak_tflops and hasattr(module, "flops"):
                self._flops += module.flops(micro)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Log on the steps on which the method logs; by then the device has caught up."""
        self._seconds += time.perf_counter() - self._began  # this callback comes before those that save or evaluate
        if trainer.global_step % trainer.log_every_n_steps:
            return
        seconds = self._seconds + self._waited
        self.tokens_per_s = self._tokens * trainer.world_size / seconds  # ranks hold like shares of a batch
        values = {
            "perf/tokens_per_s": self.tokens_per_s,
            "perf/pad_fraction": 1 - self._tokens / self._padded,
            "perf/data_wait_fraction": self._waited / seconds,
        }
        if self._flops and self.peak_tflops:
            values["perf/mfu"] = self._flops / seconds / (self.peak_tflops * 1e12)
        module.log_values(values)
        self._reset()
