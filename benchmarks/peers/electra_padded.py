"""ELECTRA as it is usually written around transformers: padded batches under the Hugging Face Trainer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DataCollatorForLanguageModeling,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

MASK_FRACTION, MASK_SHARE, DISCRIMINATOR_WEIGHT = 0.15, 0.85, 50.0


@torch.no_grad()
def gumbel(logits: Tensor) -> Tensor:
    """Sample a token for each row of logits, as the public re-implementations do."""
    noise = torch.zeros_like(logits).uniform_(1e-9, 1.0)
    return (logits - torch.log(-torch.log(noise))).argmax(dim=-1)


class PaddedPair(nn.Module):
    """Generator and discriminator of transformers with shared embeddings, L = L_G + 50 L_D.

    Args:
        discriminator: configuration of the discriminator.
        generator: configuration of the generator.
        careful: compute the generator's vocabulary logits at the masked positions only.
        sample: draws a token for each row of logits at the masked positions.
    """

    def __init__(
        self,
        discriminator: ElectraConfig,
        generator: ElectraConfig,
        careful: bool,
        sample: Callable[[Tensor], Tensor] = gumbel,
    ) -> None:
        super().__init__()
        self.generator, self.discriminator = ElectraForMaskedLM(generator), ElectraForPreTraining(discriminator)
        self.generator.electra.embeddings = self.discriminator.electra.embeddings
        self.generator.tie_weights()
        self.careful, self.sample = careful, sample

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a padded batch [B, L]; labels are -100 wherever nothing was masked."""
        around = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        masked = labels != -100
        if self.careful:
            logits = self.logits_at(masked, input_ids, around)
            generator_loss = nn.functional.cross_entropy(logits.float(), labels[masked])
        else:
            output = self.generator(input_ids, labels=labels, **around)
            generator_loss, logits = output.loss, output.logits[masked]
        original = torch.where(masked, labels, input_ids)
        corrupted = original.masked_scatter(masked, self.sample(logits.detach().float()))
        replaced = (corrupted != original).long()
        discriminator_loss = self.discriminator(corrupted, labels=replaced, **around).loss
        return generator_loss + DISCRIMINATOR_WEIGHT * discriminator_loss

    def logits_at(self, masked: Tensor, input_ids: Tensor, around: dict[str, Tensor]) -> Tensor:
        """Return the generator's logits at the masked positions."""
        hidden = self.generator.electra(input_ids, **around).last_hidden_state[masked]
        return self.generator.generator_lm_head(self.generator.generator_predictions(hidden))


class ElectraTrainer(Trainer):
    """The Hugging Face Trainer; `tick` is called at the beginning of each step with its number of real tokens."""

    tick: Callable[..., None] = staticmethod(lambda **_: None)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """Return the loss of one batch."""
        self.tick(tokens=inputs["attention_mask"].sum())  # a tensor: reading it would wait for a GPU
        return model(**inputs)


def collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForLanguageModeling:
    """Pad to the longest of the batch and mask as ELECTRA does."""
    return DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=MASK_FRACTION, mask_replace_prob=MASK_SHARE, random_replace_prob=0.0
    )


def trainer(
    model: PaddedPair,
    examples: Sequence[dict[str, list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    folder: str,
    **arguments: Any,
) -> ElectraTrainer:
    """Make a Trainer that goes through the examples in their order; what is not given is its own default."""
    options = TrainingArguments(
        output_dir=folder,
        train_sampling_strategy="sequential",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        **arguments,
    )
    return ElectraTrainer(model=model, args=options, train_dataset=examples, data_collator=collator(tokenizer))
