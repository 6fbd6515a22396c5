"""ELECTRA's two networks: Hugging Face's own modules on flat batches, their embeddings shared."""

import torch
from torch import Tensor, nn
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from datamodules.core.batches import TextBatch
from lightning_modules.core.attention import encode
from lightning_modules.core.dropout import cheap_dropout

GLOROT = ("embeddings_project", "dense_prediction")  # TF1's default initialisation applied there in the released code


def generator_config(
    discriminator: ElectraConfig, width_fraction: float, depth_fraction: float, tying: str = "embeddings"
) -> ElectraConfig:
    """Scale a discriminator's configuration down to its generator (paper, section 3.2 and appendix A).

    Width and feed-forward width are scaled, the size of a head stays. Shared embeddings keep their width; others are as
    wide as the generator, as in the released code.
    """
    hidden = round(discriminator.hidden_size * width_fraction)
    head_size = discriminator.hidden_size // discriminator.num_attention_heads
    changes = {
        "hidden_size": hidden,
        "num_hidden_layers": max(1, round(discriminator.num_hidden_layers * depth_fraction)),
        "num_attention_heads": max(1, hidden // head_size),
        "intermediate_size": round(discriminator.intermediate_size * width_fraction),
        "embedding_size": hidden if tying == "none" else discriminator.embedding_size,
    }
    return ElectraConfig(**{**discriminator.to_dict(), **changes})


class MaskedLM(nn.Module):
    """An encoder with a masked-language-model head that runs on the drawn slots alone."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.network = ElectraForMaskedLM._from_config(config, attn_implementation="flat")
        cheap_dropout(self.network)

    def forward(self, ids_T: Tensor, batch: TextBatch, place_M: Tensor) -> Tensor:
        """Return the logits [M, V] at the drawn slots."""
        hidden_MD = encode(self.network.electra, ids_T, batch)[place_M]
        return self.network.generator_lm_head(self.network.generator_predictions(hidden_MD))


class Discriminator(nn.Module):
    """An encoder that scores every token: original (below 0) or replaced (above)."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.network = ElectraForPreTraining._from_config(config, attn_implementation="flat")
        cheap_dropout(self.network)

    def forward(self, ids_T: Tensor, batch: TextBatch) -> Tensor:
        """Return one logit a token, [T]."""
        return self.network.discriminator_predictions(encode(self.network.electra, ids_T, batch))


class ElectraPair(nn.Module):
    """Discriminator and, where one is trained, generator, tied as `tying` says.

    `embeddings` shares one module: the three tables and their LayerNorm, and with them the generator's output table.
    `all` shares the whole encoder and needs a generator of the discriminator's size. `none` shares nothing.
    """

    def __init__(self, config: ElectraConfig, generator: ElectraConfig | None, tying: str) -> None:
        super().__init__()
        self.discriminator = Discriminator(config)
        self.generator = MaskedLM(generator) if generator is not None else None
        self.tying = tying
        self.tie()

    def tie(self) -> None:
        """Share what is shared; to be called again after any resize, which leaves the generator's head behind."""
        if self.generator is None or self.tying == "none":
            return
        ours, theirs = self.generator.network, self.discriminator.network
        if self.tying == "all":
            ours.electra = theirs.electra
        else:
            ours.electra.embeddings = theirs.electra.embeddings
        ours.tie_weights()  # the output table is the old one until this call (transformers 5.23)

    def resize_vocabulary(self, vocab_size: int) -> None:
        """Grow or shrink the tables and the generator's head with its bias, then tie again."""
        self.discriminator.network.resize_token_embeddings(vocab_size)
        if self.generator is None:
            return
        ours = self.generator.network
        if self.tying == "none":
            ours.resize_token_embeddings(vocab_size)
            return
        old, kept = ours.generator_lm_head, min(vocab_size, ours.config.vocab_size)
        ours.generator_lm_head = nn.Linear(old.in_features, vocab_size).to(old.weight)
        nn.init.zeros_(ours.generator_lm_head.bias)
        ours.generator_lm_head.bias.data[:kept] = old.bias.data[:kept]
        ours.config.vocab_size = vocab_size
        self.tie()


def encoder_flops(config: ElectraConfig, lens: list[int]) -> int:
    """Return the operations of one forward pass of an encoder over sequences of the given lengths.

    A multiply-add counts as two. Per token and layer: 4 D^2 for attention's projections, 2 D F for the feed-forward
    layers, 2 D n for scores and their use in a sequence of n tokens; D E for the projection of the embeddings.
    Embedding look-ups, normalisations and activations are not counted.
    """
    width, depth, tokens = config.hidden_size, config.num_hidden_layers, sum(lens)
    dense = depth * (4 * width**2 + 2 * width * config.intermediate_size)
    if config.embedding_size != width:
        dense += width * config.embedding_size
    return 2 * (dense * tokens + depth * 2 * width * sum(n * n for n in lens))


def step_flops(model: nn.Module, lens: list[int], num_slots: int) -> int:
    """Return the operations of one training pass over a micro-batch: three times the forward pass.

    On top of the encoders: D E + E V for each slot of a language-model head, D^2 + D a token for the discriminator's.
    """
    if isinstance(model, MaskedLM):
        config = model.network.config
        head = num_slots * config.embedding_size * (config.hidden_size + config.vocab_size)
        return 3 * (encoder_flops(config, lens) + 2 * head)
    config = model.discriminator.network.config
    own = 3 * (encoder_flops(config, lens) + 2 * sum(lens) * config.hidden_size * (config.hidden_size + 1))
    return own + (step_flops(model.generator, lens, num_slots) if model.generator is not None else 0)


@torch.no_grad()
def unigram_logits(token_counts_V: Tensor) -> Tensor:
    """Return log-frequencies, float32 [V], of a generator that knows how often tokens occur; unseen ones never come."""
    return (token_counts_V.double() / token_counts_V.sum()).log().float()
