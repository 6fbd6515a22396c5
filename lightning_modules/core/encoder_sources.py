"""Where an encoder comes from: a run of ours, a Hugging Face folder, a hub name, or a package that carries one."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from datamodules.core.packaged import shipped
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.reader import read_weights
from lightning_modules.core.checkpoint.verify import complete_steps
from lightning_modules.core.run_method import kind_of_run, method_of_run
from lightning_modules.core.sizes import check_size
from lightning_modules.core.warm_start import checkpoint_of, load_weights, read_pretrained, readable

ENCODER = "encoder"  # in a run's folder: how the encoder that was taken from elsewhere is built


class TakesEncoder:
    """What a method does whose encoder may come from elsewhere; it stands before `Method` among the bases.

    Its run keeps how the encoder is built, so that the source may be moved once the run has begun.
    """

    init_from: str | None
    shape_from: str | None  # how the encoder is built: what a run that goes on has kept, else the source

    def use_kept(self, run: Path) -> None:
        """Build the encoder as the run's folder says."""
        if self.init_from and (run / ENCODER / "config.json").is_file():
            self.shape_from = str(run / ENCODER)

    def recall(self, run: Path) -> None:
        """Build the encoder as the run's folder says, where there is no data module to ask."""
        self.use_kept(run)

    def configure_model(self) -> None:
        """Build the networks; a new run keeps in its folder how its encoder is built."""
        if self.model is not None:
            return
        run = Path(self.trainer.default_root_dir)
        self.goes_on = bool(complete_steps(run / "checkpoints"))
        if self.goes_on:
            self.use_kept(run)
        super().configure_model()
        if self.init_from and not self.goes_on and self.trainer.is_global_zero:
            self.taken().config.save_pretrained(run / ENCODER)

    def taken(self) -> PreTrainedModel:
        """Return the network that is built like the source."""
        raise TypeError(f"{type(self).__name__} gives no taken()")


def weights_folder(source: str) -> str:
    """Return the Hugging Face folder or hub name behind a source: of an exported ELECTRA it is the discriminator.

    Raises:
        CheckpointError: a package that is known to carry a model, and is not installed.
    """
    try:
        source = shipped(source)
    except FileNotFoundError as error:
        raise CheckpointError(f"model.init_from = {source}: {error}") from None
    inner = Path(source, "discriminator")
    return str(inner) if inner.is_dir() else source


def encoder_config(
    source: str, tokenizer: PreTrainedTokenizerBase, families: tuple[str, ...] | None = None
) -> PreTrainedConfig:
    """Read how the encoder of a run, a Hugging Face folder or a hub name is built.

    Raises:
        CheckpointError: there is none, it is of another family, or it has another vocabulary than the data.
    """
    checkpoint = checkpoint_of(source)
    config = _config_of_folder(source) if checkpoint is None else _config_of_run(checkpoint.parents[1], tokenizer)
    if families and config.model_type not in families:
        known = " and ".join(families)
        raise CheckpointError(f"model.init_from = {source}: is of the family {config.model_type}; give one of {known}")
    check_size(config, f"model.init_from = {source}")
    heads, width = (getattr(config, name, 1) or 1 for name in ("num_attention_heads", "hidden_size"))
    if not hasattr(config, "head_dim") and width % heads:
        raise CheckpointError(f"model.init_from = {source}: its width {width} cannot be shared by {heads} heads")
    folder = Path(weights_folder(source)) if checkpoint is None else checkpoint.parents[1] / "tokenizer"
    same_vocabulary(tokenizer, folder, source)
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"model.init_from = {source}: knows {config.vocab_size} tokens, the tokenizer has {len(tokenizer)}; "
            "set data.tokenizer to the encoder's own"
        )
    return config


def _config_of_folder(source: str) -> PreTrainedConfig:
    with readable(source):
        return AutoConfig.from_pretrained(weights_folder(source), trust_remote_code=False)


def _config_of_run(run: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    if (run / ENCODER / "config.json").is_file():
        with readable(str(run / ENCODER)):
            return AutoConfig.from_pretrained(run / ENCODER, trust_remote_code=False)
    return method_of_run(run).encoder_config(tokenizer)


def same_vocabulary(tokenizer: PreTrainedTokenizerBase, folder: Path, source: str) -> None:
    """Refuse to read text with other ids than those that the encoder was trained with."""
    file = folder / "tokenizer.json"
    if not hasattr(tokenizer, "get_vocab"):  # a plan knows the size of the vocabulary alone
        return
    try:
        known = Tokenizer.from_file(str(file)).get_vocab() if file.is_file() else tokenizer.get_vocab()
    except Exception as error:  # of what is wrong with a file, tokenizers raises bare ones
        raise CheckpointError(f"model.init_from = {source}: {file.name} cannot be read ({error})") from error
    if known != tokenizer.get_vocab():
        raise CheckpointError(
            f"model.init_from = {source}: was trained with another tokenizer; set data.tokenizer to {folder}"
        )


@torch.no_grad()
def load_encoder(encoder: PreTrainedModel, source: str) -> None:
    """Copy the encoder's weights out of a run, a Hugging Face folder or a hub name.

    Raises:
        CheckpointError: they cannot be read, or do not fit.
    """
    checkpoint = checkpoint_of(source)
    if checkpoint is None:
        names = {name for name, _ in encoder.named_parameters()}
        load_weights(encoder, read_pretrained(AutoModel, weights_folder(source), source, names), source)
        return
    weights = read_weights(checkpoint)
    prefixes = kind_of_run(checkpoint.parents[1]).encoder_prefixes
    prefix = next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in weights)), "")
    own = {name.removeprefix(prefix): weight for name, weight in weights.items() if prefix and name.startswith(prefix)}
    load_weights(encoder, own, source)
