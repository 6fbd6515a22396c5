"""What ELECTRA does to a real sentence, shown in TensorBoard."""

import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.core.batches import TextBatch
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.keyed import mix

LEGEND = (
    "found: replaced, and the discriminator says so; missed: replaced, and it says original; "
    "accused: original, and it says replaced. The number is its probability of replaced."
)
ISOLATE, LEFT_TO_RIGHT, END = "\u2068", "\u2066", "\u2069"  # what is between them turns nothing round it (UAX #9)
TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # embeddings, overrides, isolates and their ends


class ElectraPanel(Callback):
    """Show held-out sentences every n steps: original, corrupted, and the discriminator's verdict on each word.

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


class Piece(NamedTuple):
    """One token of a sentence, as the discriminator saw it."""

    token: int
    replaced: bool
    probability: float


def panel(
    tokenizer: PreTrainedTokenizerBase,
    batch: TextBatch,
    corrupted_T: Tensor,
    probability_T: Tensor,
    num_sentences: int,
) -> str:
    """Return sentences in Markdown: the text as it was, and as the discriminator saw and judged it.

    Special tokens, which nothing replaces, are left out.
    """
    blocks, start = [LEGEND], 0
    for length in batch["lens"][:num_sentences]:
        span = slice(start, start + length)
        own_T = ~batch["special_T"][span]
        original, seen, probability = (x_T[span][own_T] for x_T in (batch["ids_T"], corrupted_T, probability_T))
        pieces = map(Piece, seen.tolist(), (seen != original).tolist(), probability.tolist())
        judged = " ".join(verdict(tokenizer, word) for word in words(tokenizer, list(pieces)))
        before = escape(visible(tokenizer.decode(original.tolist())))
        blocks += [f"**original** {ISOLATE}{before}{END}", f"**judged** {ISOLATE}{judged}{END}"]
        start += length
    return "\n\n".join(blocks)


def words(tokenizer: PreTrainedTokenizerBase, pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Put the pieces of a word together: those between which the tokenizer writes no space."""
    word: list[Piece] = []
    for piece in pieces:
        if word and " " in tokenizer.decode([word[-1].token, piece.token]).lstrip():
            yield word
            word = []
        word.append(piece)
    if word:
        yield word


def verdict(tokenizer: PreTrainedTokenizerBase, word: list[Piece]) -> str:
    """Return a word, and what became of it where it was replaced or accused; of pieces, of the likeliest one."""
    text = escape(visible(tokenizer.decode([piece.token for piece in word]).strip()))
    replaced = [piece.probability for piece in word if piece.replaced]
    probability = max(replaced or [piece.probability for piece in word])
    accused = probability > 0.5
    if not (replaced or accused):
        return text
    what = ("found" if accused else "missed") if replaced else "accused"
    return f"{ISOLATE}**{text}**{END} {LEFT_TO_RIGHT}({what}, {probability:.0%}){END}"


def visible(text: str) -> str:
    """Take out what steers a display and is not seen: control characters, and marks that turn the direction."""
    return "".join(c for c in text if c.isspace() or (unicodedata.category(c) != "Cc" and c not in TURNS))


def escape(text: str) -> str:
    """Take the meaning off Markdown's and HTML's characters."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()#+-!|~" else {"<": "&lt;", "&": "&amp;"}.get(c, c) for c in text)
