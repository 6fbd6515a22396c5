"""2D Matryoshka as its users train it: SentenceTransformerTrainer with Matryoshka2dLoss, padded batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import Matryoshka2dLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn
from torch.utils.data import DataLoader

COLUMNS = ("anchor", "positive", "negative")


class PairTrainer(SentenceTransformerTrainer):
    """The trainer, with batches in the order of the rows; `tick` is called at the beginning of each step."""

    tick: Callable[..., None] = staticmethod(lambda **_: None)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *rest: Any, **more: Any) -> Tensor:
        """Return the loss of one batch."""
        masks = [value for name, value in inputs.items() if name.endswith("attention_mask")]
        tokens, padded = sum(mask.sum() for mask in masks), sum(mask.numel() for mask in masks)
        self.tick(pairs=len(masks[0]), tokens=int(tokens), padded=padded)
        return super().compute_loss(model, inputs, *rest, **more)

    def get_train_dataloader(self) -> DataLoader:
        """Load the rows in their order, as they are tokenised by the trainer's own collator."""
        return DataLoader(self.train_dataset, self.args.train_batch_size, collate_fn=self.data_collator)


def sentence_transformer(folder: str, sequence_length: int, attention: str | None = None) -> SentenceTransformer:
    """Open a Hugging Face folder as an encoder whose vectors are means over tokens.

    With the attention `flash_attention_2` the library leaves padding out by itself.
    """
    options = {"attn_implementation": attention} if attention else {}
    encoder = Transformer(folder, max_seq_length=sequence_length, model_kwargs=options)
    return SentenceTransformer(modules=[encoder, Pooling(encoder.get_embedding_dimension(), "mean")])


def trainer(
    model: SentenceTransformer,
    rows: Sequence[tuple[str, ...]],
    widths: Sequence[int],
    folder: str,
    **arguments: Any,
) -> PairTrainer:
    """Make a trainer that goes through rows of texts in their order; what is not given is its own default."""
    columns = {name: list(texts) for name, texts in zip(COLUMNS, zip(*rows, strict=True), strict=False)}
    loss = Matryoshka2dLoss(model, MultipleNegativesRankingLoss(model), list(widths))
    options = SentenceTransformerTrainingArguments(
        output_dir=folder, save_strategy="no", disable_tqdm=True, report_to="none", **arguments
    )
    return PairTrainer(model=model, args=options, train_dataset=Dataset.from_dict(columns), loss=loss)


def encode(model: SentenceTransformer, texts: Sequence[str]) -> None:
    """Encode texts as a user does."""
    with torch.inference_mode():
        model.encode(list(texts), batch_size=32, show_progress_bar=False)
