"""What a configuration may change in a mode, and an encoder with fresh weights."""

from dataclasses import asdict, dataclass
from typing import Literal

from transformers import BertConfig, PreTrainedTokenizerBase

Weighting = Literal["uniform", "log", "linear"]


@dataclass(frozen=True)
class ObjectiveOptions:
    """Single settings in place of those of the mode; null leaves the mode's own.

    Args:
        first_layer: shallowest layer that is trained besides the last, 1, or 0 for the output of the embeddings.
        last_layer: deepest of them, counted from the last: -1 is the one below it.
        layers_per_step: how many of them a step trains, drawn without replacement; -1 for all.
        pairs: of starbucks, the layers and their widths.
        widths: what widths are drawn from; null for powers of two from 8 up.
        width_weights: weight of each width.
        widths_per_step: how many widths a step trains, drawn without replacement; -1 for all.
        shared_widths: one draw of widths for all layers of a step, or one for each.
        full_width: where the full width is trained beside what is drawn.
        normalise: scale cut vectors to length one; it matters to losses of distances alone.
        last_weight: weight of the last layer's losses.
        student_weight: weight of the other layers' losses.
        weighting: how that falls with the depth.
        average: which losses are divided by the number of those layers.
        kl_weight: weight of the divergence from the last layer.
        kl_temperature: temperature of that divergence; 0 for none.
        kl_power: power of the temperature that multiplies it.
        kl_weighting: how its weight changes with the depth; growing is that of the improved code.
        kl_width: take that divergence at full width or at the width drawn.
        detach_teacher: keep the last layer out of the gradient of the divergence.
        alignment: of espresso, compress by an exact decomposition or by a random one.
        alignment_temperature: of espresso, temperature of the divergence in it.
        encoder_passes: 2 for students from a pass of their own, with other dropout.
        drop_duplicates: leave out examples with a text that the batch had before.
    """

    first_layer: int | None = None
    last_layer: int | None = None
    layers_per_step: int | None = None
    pairs: list[list[int]] | None = None
    widths: list[int] | None = None
    width_weights: list[float] | None = None
    widths_per_step: int | None = None
    shared_widths: bool | None = None
    full_width: Literal["none", "last", "all"] | None = None
    normalise: bool | None = None
    last_weight: float | None = None
    student_weight: float | None = None
    weighting: Weighting | None = None
    average: Literal["none", "base", "all"] | None = None
    kl_weight: float | None = None
    kl_temperature: float | None = None
    kl_power: Literal[0, 1, 2] | None = None
    kl_weighting: Literal["uniform", "log", "linear", "growing"] | None = None
    kl_width: Literal["full", "drawn"] | None = None
    detach_teacher: bool | None = None
    alignment: Literal["none", "exact", "random"] | None = None
    alignment_temperature: float | None = None
    encoder_passes: Literal[1, 2] | None = None
    drop_duplicates: bool | None = None


@dataclass(frozen=True)
class UntrainedBert:
    """A BERT encoder with fresh weights.

    Args:
        hidden_size: width of the vectors.
        num_layers: layers.
        num_heads: attention heads.
        intermediate_size: width inside of a layer; null for four times the width.
        max_positions: longest sequence.
        dropout: share of the hidden states dropped.
        attention_dropout: share of the attention's weights dropped.
        initializer_range: spread of the first weights.
    """

    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 4
    intermediate_size: int | None = None
    max_positions: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02

    def config(self, tokenizer: PreTrainedTokenizerBase) -> BertConfig:
        """Return its configuration for a tokenizer."""
        return BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            intermediate_size=self.intermediate_size or 4 * self.hidden_size,
            max_position_embeddings=self.max_positions,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.attention_dropout,
            initializer_range=self.initializer_range,
            pad_token_id=tokenizer.pad_token_id,
        )


def given(options: ObjectiveOptions) -> dict[str, object]:
    """Return what replaces the mode's settings."""
    return {name: value for name, value in asdict(options).items() if value is not None}
