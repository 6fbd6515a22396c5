"""What ELECTRA does to a real sentence, shown in TensorBoard."""

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from datamodules.core.batches import TextBatch
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.keyed import mix

CAUGHT, MISSED, ALARM = (
    "\U0001f7e9",
    "\U0001f7e5",
    "\U0001f7e8",
)  # green, red, yellow squares: TensorBoard strips colours
LEGEND = f"{CAUGHT} replaced and found, {MISSED} replaced and missed, {ALARM} original but accused"


class ElectraPanel(Callback):
    """Show held-out sentences every n steps: original, corrupted, and the discriminator's verdict on each token.

    Logged to TensorBoard: the text `electra/sentences` and the histograms `electra/replaced_probability`, of the tokens
    that were replaced, and `electra/original_probability`, of those that were not.

    Args:
        every_n_steps: Optimizer steps between two panels.
        num_sentences: Sentences shown, the first of the validation data.

    Raises:
        CheckpointError: a number is below one.
    """

    def __init__(self, every_n_steps: int = 1000, num_sentences: int = 3) -> None:
        for key, value in {"every_n_steps": every_n_steps, "num_sentences": num_sentences}.items():
            if value < 1:
                raise CheckpointError(f"callbacks.electra_panel.{key}: {value} is below 1")
        self.every_n_steps, self.num_sentences = every_n_steps, num_sentences

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Show the panel where the step says so."""
        if trainer.global_step % self.every_n_steps == 0:
            self.show(trainer, module)

    @torch.no_grad()
    def show(self, trainer: Trainer, module: LightningModule) -> None:
        """Corrupt and judge one validation batch and write it to TensorBoard; all ranks run the model, one writes."""
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        loader = trainer.datamodule.val_dataloader()
        batch = next((micro for micros in loader or () for micro in micros), None)
        if not boards or batch is None or module.task == "mlm":
            return
        batch = trainer.strategy.batch_to_device(batch)
        module.eval()
        with trainer.precision_plugin.val_step_context():
            found, probability_T = module(module.judge, batch, mix(module.seed, 1))
        module.train()
        if not trainer.is_global_zero:
            return
        text = panel(trainer.datamodule.tokenizer, batch, found.ids_T, probability_T, self.num_sentences)
        for board in boards:
            board.add_text("electra/sentences", text, trainer.global_step)
            for name, chosen_T in (("replaced", found.replaced_T), ("original", ~found.replaced_T)):
                if chosen_T.any():
                    tag = f"electra/{name}_probability"
                    board.add_histogram(tag, probability_T[chosen_T].cpu(), trainer.global_step)


def panel(tokenizer: object, batch: TextBatch, corrupted_T: Tensor, probability_T: Tensor, num_sentences: int) -> str:
    """Return sentences in Markdown: the text as it was, and as the discriminator saw and judged it."""
    blocks = [LEGEND]
    start = 0
    for length in batch["lens"][:num_sentences]:
        span = slice(start, start + length)
        original, corrupted = batch["ids_T"][span], corrupted_T[span]
        seen = tokenizer.convert_ids_to_tokens(corrupted.tolist())
        verdicts = [
            verdict(token, fake, p)
            for token, fake, p in zip(seen, (corrupted != original).tolist(), probability_T[span].tolist(), strict=True)
        ]
        blocks += [f"**original** {escape(tokenizer.decode(original.tolist()))}", f"**judged** {' '.join(verdicts)}"]
        start += length
    return "\n\n".join(blocks)


def verdict(token: str, replaced: bool, probability: float) -> str:
    """Return one token with its mark, and the probability of being replaced where it matters."""
    accused = probability > 0.5
    if not (replaced or accused):
        return escape(token)
    mark = (CAUGHT if accused else MISSED) if replaced else ALARM
    return f"{mark} **{escape(token)}** ({probability:.0%})"


def escape(text: str) -> str:
    """Take the meaning off Markdown's and HTML's characters."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()#+-!|~" else {"<": "&lt;", "&": "&amp;"}.get(c, c) for c in text)
