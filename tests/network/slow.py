"""A callback that makes steps slow enough to pull a cable between two of them."""

import time

from lightning.pytorch import Callback


class Slow(Callback):
    """Sleep before every step."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, *_: object) -> None:
        time.sleep(self.seconds)
