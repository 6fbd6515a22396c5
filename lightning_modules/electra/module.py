"""ELECTRA as a LightningModule: a batch of text through the generator, the sampler and the discriminator."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import ElectraConfig, PreTrainedTokenizerBase

from datamodules.core.batches import TextBatch
from lightning_modules.core.base import Method
from lightning_modules.core.export import save_network
from lightning_modules.core.keyed import keyed_uniform, mix
from lightning_modules.core.masking import Slots, draw_slots, slot_counts
from lightning_modules.core.precision import widened
from lightning_modules.core.sizes import check_size
from lightning_modules.core.terms import LossTerms
from lightning_modules.core.weights import initialise
from lightning_modules.electra import modeling, objective
from lightning_modules.electra.start import warm_start

PLACES, MASKS, SAMPLES = 0, 1, 2  # streams of randomness inside a sequence


class Corrupted(NamedTuple):
    """A micro-batch after the generator: what was drawn, predicted and written."""

    slots: Slots
    logits_MV: Tensor | None
    sampled_M: Tensor
    ids_T: Tensor
    replaced_T: Tensor


class Electra(Method):
    """ELECTRA: a small generator replaces tokens, and the encoder learns to tell which (Clark et al., 2020).

    Args:
        hidden_size: Width of the encoder.
        num_layers: Layers of the encoder.
        num_heads: Attention heads; by default heads of 64, at least one.
        intermediate_size: Width of the feed-forward layers; by default 4 * hidden_size.
        embedding_size: Width of the token, position and type tables.
        max_positions: Longest sequence that the position table serves.
        dropout: Share of hidden units dropped.
        attention_dropout: Share of attention probabilities dropped; 0 allows faster kernels.
        initializer_range: Standard deviation of new weights, cut at two sigma; a narrow encoder wants more.
        task: Replaced-token detection on all tokens, on the drawn tokens only, or masked language modelling.
        generator: A trained masked language model, corpus frequencies, or every token alike.
        generator_width: Width, heads and feed-forward width of the generator as a share of the encoder's.
        generator_depth: Layers of the generator as a share of the encoder's.
        tying: What generator and discriminator share: the embeddings, the whole encoder, or nothing.
        mask_fraction: Share of the tokens of a sequence that is drawn.
        mask_share: Share of the drawn tokens that becomes [MASK]; the rest stays and is predicted all the same.
        masking: Draw without replacement, or with it as the released code does.
        sampler: One uniform number a slot by inverse CDF, or Gumbel noise for every entry as the released code.
        temperature: Temperature of the generator's samples.
        disallow_correct: Never sample the original token.
        generator_weight: Weight of the mean masked-language-model loss.
        discriminator_weight: Weight of the mean detection loss.
        optimizer: Bias-corrected fused AdamW, or Adam without bias correction as released.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay; none on biases and normalisations.
        adam_epsilon: Added to the root of the second moment.
        schedule: Shape of the learning rate; `multiplied` is the released one.
        warmup_steps: Steps of linear warm-up.
        clip_norm: Largest norm of the whole gradient; 0 for no limit.
        init_from: Run folder, Hugging Face folder or hub name whose weights to start from.
        init_generator_from: Folder or hub name of the generator, where init_from is a discriminator alone.
    """

    encoder_prefixes = ("model.discriminator.network.electra.", "model.network.electra.")  # of detection, of masking

    def __init__(
        self,
        hidden_size: int = 256,
        num_layers: int = 12,
        num_heads: int | None = None,
        intermediate_size: int | None = None,
        embedding_size: int = 128,
        max_positions: int = 512,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        initializer_range: float = 0.02,
        task: Literal["electra", "electra_masked_only", "mlm"] = "electra",
        generator: Literal["trained", "unigram", "uniform"] = "trained",
        generator_width: float = 0.25,
        generator_depth: float = 1.0,
        tying: Literal["embeddings", "all", "none"] = "embeddings",
        mask_fraction: float = 0.15,
        mask_share: float = 0.85,
        masking: Literal["without_replacement", "with_replacement"] = "without_replacement",
        sampler: Literal["inverse_cdf", "gumbel"] = "inverse_cdf",
        temperature: float = 1.0,
        disallow_correct: bool = False,
        generator_weight: float = 1.0,
        discriminator_weight: float = 50.0,
        optimizer: Literal["adamw", "as_released"] = "adamw",
        learning_rate: float = 5e-4,
        weight_decay: float = 0.01,
        adam_epsilon: float = 1e-6,
        schedule: Literal["linear", "multiplied", "cosine", "constant"] = "linear",
        warmup_steps: int = 10000,
        clip_norm: float = 1.0,
        init_from: str | None = None,
        init_generator_from: str | None = None,
    ) -> None:
        super().__init__()
        self.optimization(optimizer, learning_rate, weight_decay, adam_epsilon, schedule, warmup_steps, clip_norm)
        self.hidden_size, self.num_layers, self.embedding_size = hidden_size, num_layers, embedding_size
        self.num_heads = num_heads or max(1, hidden_size // 64)
        self.intermediate_size = intermediate_size or 4 * hidden_size
        self.max_positions, self.dropout, self.attention_dropout = max_positions, dropout, attention_dropout
        self.initializer_range = initializer_range
        self.task, self.generator, self.tying = task, generator, tying
        self.generator_width, self.generator_depth = generator_width, generator_depth
        self.mask_fraction, self.mask_share = mask_fraction, mask_share
        self.with_replacement = masking == "with_replacement"
        self.sampler, self.temperature, self.disallow_correct = sampler, temperature, disallow_correct
        self.generator_weight, self.discriminator_weight = generator_weight, discriminator_weight
        self.init_from, self.init_generator_from = init_from, init_generator_from

    def encoder_config(self, tokenizer: PreTrainedTokenizerBase) -> ElectraConfig:
        """Return the Hugging Face configuration of the encoder that is trained."""
        return ElectraConfig(
            vocab_size=len(tokenizer),
            embedding_size=self.embedding_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.attention_dropout,
            max_position_embeddings=self.max_positions,
            initializer_range=self.initializer_range,
            pad_token_id=tokenizer.pad_token_id,
        )

    def build(self, tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> None:
        """Build generator and discriminator, or the masked language model, for a tokenizer."""
        self.mask_id, self.vocab_size = tokenizer.mask_token_id, len(tokenizer)
        self.max_slots = max(1, int((self.mask_fraction + 0.005) * sequence_length))
        config = self.encoder_config(tokenizer)
        check_size(config, "model")
        if self.task == "mlm":
            self.model = modeling.MaskedLM(config)
        else:
            smaller = modeling.generator_config(config, self.generator_width, self.generator_depth, self.tying)
            self.model = modeling.ElectraPair(config, smaller if self.generator == "trained" else None, self.tying)
        initialise(self.model, self.initializer_range, self.seed, modeling.GLOROT)
        if self.generator == "unigram":
            self.register_buffer("frequencies_V", torch.zeros(self.vocab_size))  # filled by a run, kept by checkpoints

    def configure_model(self) -> None:
        """Build once; a generator that draws by frequency counts the training text."""
        is_new = self.model is None
        super().configure_model()
        if is_new and self.generator == "unigram":
            counts_V = torch.from_numpy(self.trainer.datamodule.token_counts())
            self.frequencies_V = modeling.unigram_logits(counts_V).to(self.frequencies_V)

    def slot_counts(self, batch: TextBatch) -> list[int]:
        """Return how many tokens are drawn from each sequence."""
        return slot_counts(batch, self.mask_fraction, self.max_slots, self.with_replacement)

    def target_counts(self, batch: TextBatch) -> dict[str, int]:
        """Count the drawn slots and, for the discriminator, all tokens."""
        slots = sum(self.slot_counts(batch))
        if self.task == "mlm":
            return {"mlm_loss": slots}
        detected = slots if self.task == "electra_masked_only" else sum(batch["lens"])
        trained = {"generator_loss": slots} if self.generator == "trained" else {}
        return {**trained, "discriminator_loss": detected}

    def head_rows(self, batch: TextBatch) -> dict[str, int]:
        """Say that language-model heads run on the drawn slots alone."""
        network = "model.network" if self.task == "mlm" else "model.generator.network"
        slots = sum(self.slot_counts(batch))
        return {f"{network}.generator_predictions": slots, f"{network}.generator_lm_head": slots}

    def draw(self, batch: TextBatch, key: int) -> tuple[Slots, Tensor]:
        """Draw the slots and mask them: the generator's input."""
        slots = draw_slots(batch, self.slot_counts(batch), mix(key, PLACES), self.with_replacement)
        masks_M = keyed_uniform(mix(key, MASKS), slots.sample_M, slots.rank_M) < self.mask_share
        return slots, objective.mask_slots(batch["ids_T"], slots.place_M, masks_M, self.mask_id)

    def corrupt(self, batch: TextBatch, key: int) -> Corrupted:
        """Run the generator and write its samples over the original tokens."""
        slots, masked_T = self.draw(batch, key)
        logits_MV = None
        if self.generator == "trained":
            logits_MV = self.model.generator(masked_T, batch, slots.place_M)
        sampled_M = self.sample(logits_MV, batch["ids_T"][slots.place_M], slots, key)
        corrupted_T = objective.corrupt(batch["ids_T"], slots.place_M, sampled_M)
        return Corrupted(slots, logits_MV, sampled_M, corrupted_T, corrupted_T != batch["ids_T"])

    def judge(self, batch: TextBatch, key: int) -> tuple[Corrupted, Tensor]:
        """Corrupt a micro-batch and give the probability that a token was replaced, float32 [T]."""
        found = self.corrupt(batch, key)
        return found, self.model.discriminator(found.ids_T, batch).float().sigmoid()

    def sample(self, logits_MV: Tensor | None, ids_M: Tensor, slots: Slots, key: int) -> Tensor:
        """Draw one token a slot from the generator; no gradient flows through the draw."""
        stream = mix(key, SAMPLES)
        uniform_M = keyed_uniform(stream, slots.sample_M, slots.rank_M)
        if self.generator == "uniform":
            return objective.sample_uniform(self.vocab_size, uniform_M, ids_M if self.disallow_correct else None)
        if self.generator == "unigram":
            logits_MV = self.frequencies_V.expand(len(ids_M), -1)
        logits_MV = widened(logits_MV.detach())
        if self.disallow_correct:
            logits_MV = objective.without_truth(logits_MV, ids_M)
        if self.sampler == "gumbel":
            token_V = torch.arange(self.vocab_size, device=ids_M.device)
            uniform_MV = keyed_uniform(stream, slots.sample_M[:, None], slots.rank_M[:, None], token_V)
            return objective.sample_gumbel(logits_MV, uniform_MV, self.temperature)
        return objective.sample_inverse_cdf(logits_MV, uniform_M, self.temperature)

    def objective(self, batch: TextBatch, key: int, measures: bool) -> LossTerms:
        """Return the loss terms of one micro-batch."""
        if self.task == "mlm":
            return self.masked_lm_objective(batch, key, measures)
        found = self.corrupt(batch, key)
        place_M, original_M = found.slots.place_M, batch["ids_T"][found.slots.place_M]
        logits_T = self.model.discriminator(found.ids_T, batch)
        where = place_M if self.task == "electra_masked_only" else slice(None)
        detection = objective.discriminator_loss(logits_T[where], found.replaced_T[where])
        terms = {"discriminator_loss": detection._replace(weight=self.discriminator_weight)}
        if found.logits_MV is not None:
            prediction = objective.generator_loss(found.logits_MV, original_M)
            terms["generator_loss"] = prediction._replace(weight=self.generator_weight)
        if not measures:
            return LossTerms(terms, {})
        right = (found.sampled_M == original_M).sum()
        counts = {"sampled_right": right, "sampled": torch.tensor(len(place_M))}
        return LossTerms(terms, {**counts, "histogram": objective.logit_histogram(logits_T, found.replaced_T)})

    def masked_lm_objective(self, batch: TextBatch, key: int, measures: bool) -> LossTerms:
        """Return the loss of the baseline: the same encoder trained by masked language modelling alone."""
        slots, masked_T = self.draw(batch, key)
        logits_MV, original_M = self.model(masked_T, batch, slots.place_M), batch["ids_T"][slots.place_M]
        terms = {"mlm_loss": objective.generator_loss(logits_MV, original_M)}
        if not measures:
            return LossTerms(terms, {})
        right = (logits_MV.argmax(-1) == original_M).sum()
        return LossTerms(terms, {"right": right, "drawn": torch.tensor(len(original_M))})

    def summarise(self, statistics: dict[str, Tensor]) -> dict[str, float]:
        """Return the accuracy of the generator's samples and how well replaced tokens are found."""
        if self.task == "mlm":
            return {"mlm_accuracy": (statistics["right"] / statistics["drawn"]).item()}
        accuracy = (statistics["sampled_right"] / statistics["sampled"]).item()
        return {"sampled_accuracy": accuracy, **objective.detection_metrics(statistics["histogram"])}

    def flops(self, batch: TextBatch) -> float:
        """Return the operations of one training pass over a micro-batch (see `modeling.step_flops`)."""
        return modeling.step_flops(self.model, batch["lens"], sum(self.slot_counts(batch)))

    def warm_start(self, source: str) -> None:
        """Start from a run, from what `export` wrote, or from a discriminator (a masked language model for `mlm`)."""
        warm_start(self, source)

    def export(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write `discriminator` and `generator`, or the masked language model itself, as Hugging Face folders."""
        if self.task == "mlm":
            save_network(self.model.network, folder, tokenizer)
            return
        save_network(self.model.discriminator.network, folder / "discriminator", tokenizer)
        if self.model.generator is not None:
            save_network(self.model.generator.network, folder / "generator", tokenizer)
