"""Where an encoder comes from: a run of ours, a Hugging Face folder, a hub name, or a package that carries one."""

import copy
from collections.abc import Collection
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.reader import read_weights
from lightning_modules.core.checkpoint.verify import complete_steps
from lightning_modules.core.run_method import kind_of_run, method_of_run, options_of_run
from lightning_modules.core.run_prompts import prompts_of
from lightning_modules.core.same_tokenizer import same_tokenizer
from lightning_modules.core.sentence_form import Form, keep, kept
from lightning_modules.core.sentence_reading import MODULES, read, read_head
from lightning_modules.core.sizes import check_size
from lightning_modules.core.source_files import sentence_files, tokenizer_of, weights_folder
from lightning_modules.core.warm_start import checkpoint_of, load_weights, read_pretrained, readable

ENCODER = "encoder"  # in a run's folder: how the encoder that was taken from elsewhere is built
HEAD = "model.head."  # names before the weights of what follows pooling, in the checkpoint of a run


class TakesEncoder:
    """What a method does whose encoder may come from elsewhere; it stands before `Method` among the bases.

    Its run keeps how the encoder is built, so that the source may be moved once the run has begun.
    """

    init_from: str | None
    shape_from: str | None  # how the encoder is built: what a run that goes on has kept, else the source
    form: Form | None = None  # how its vectors are made, where a method makes some

    def use_kept(self, run: Path) -> None:
        """Build the encoder as the run's folder says."""
        if self.init_from and (run / ENCODER / "config.json").is_file():
            self.shape_from = str(run / ENCODER)
        self.form = kept(run / ENCODER) or self.form

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
        if not self.goes_on and self.trainer.is_global_zero:
            if self.init_from:
                self.taken().config.save_pretrained(run / ENCODER)
            if self.form is not None:
                keep(self.form, run / ENCODER)

    def taken(self) -> PreTrainedModel:
        """Return the network that is built like the source."""
        raise TypeError(f"{type(self).__name__} gives no taken()")


def encoder_config(
    source: str | None,
    tokenizer: PreTrainedTokenizerBase,
    families: tuple[str, ...] | None = None,
    is_its_own: bool = False,
) -> PreTrainedConfig:
    """Read how the encoder of a run, a Hugging Face folder or a hub name is built.

    Args:
        source: where it lies.
        tokenizer: what texts are read with.
        families: the ones that can be taken; by default any.
        is_its_own: the tokenizer needs no comparison: it was opened there, or the source is what a run has kept.

    Raises:
        CheckpointError: there is none, it is of another family, or it has another vocabulary than the data.
    """
    if source is None:  # rules of a registered method say so before; a class of one's own has none
        raise CheckpointError("model.init_from = null: name the encoder to begin with, or give model.untrained")
    checkpoint = checkpoint_of(source)
    config = _config_of_folder(source) if checkpoint is None else _config_of_run(checkpoint.parents[1], tokenizer)
    if families and config.model_type not in families:
        known = " and ".join(families)
        raise CheckpointError(f"model.init_from = {source}: is of the family {config.model_type}; give one of {known}")
    check_size(config, f"model.init_from = {source}")
    heads, width = (getattr(config, name, 1) or 1 for name in ("num_attention_heads", "hidden_size"))
    if not hasattr(config, "head_dim") and width % heads:
        raise CheckpointError(f"model.init_from = {source}: its width {width} cannot be shared by {heads} heads")
    check_built(config, source)
    if not is_its_own:
        same_tokenizer(tokenizer, tokenizer_of(source), source)
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"model.init_from = {source}: knows {config.vocab_size} tokens, the tokenizer has {len(tokenizer)}; "
            "set data.tokenizer to the encoder's own"
        )
    return config


def _config_of_folder(source: str) -> PreTrainedConfig:
    folder = weights_folder(source)
    with readable(source):
        if find_adapter_config_file(folder):
            raise ValueError("it holds an adapter, which is not read; merge it into the network and save that")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(config, "quantization_config", None):
        raise CheckpointError(f"model.init_from = {source}: is quantised; give its full weights")
    config._attn_implementation = None  # its wish, which may be code of a hub; what is used here is chosen here
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    return config


def check_built(config: PreTrainedConfig, source: str) -> None:
    """Build a network without memory, to see that what its config.json asks for can be built.

    Raises:
        CheckpointError: it cannot.
    """
    try:
        with torch.device("meta"):
            AutoModel.from_config(copy.deepcopy(config), attn_implementation="eager")
    except Exception as error:  # transformers and torch raise a dozen kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"model.init_from = {source}: its config.json asks for what cannot be built ({reason})"
        ) from error


def _config_of_run(run: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    if (run / ENCODER / "config.json").is_file():
        with readable(str(run / ENCODER)):
            return AutoConfig.from_pretrained(run / ENCODER, trust_remote_code=False)
    return method_of_run(run).encoder_config(tokenizer)


def form_of(source: str, drop: Collection[str] = ()) -> Form | None:
    """Return how a source makes vectors: a folder of sentence-transformers, or a run; None where it does not say.

    Args:
        source: a run, a Hugging Face folder or a hub name.
        drop: modules and settings to leave out, by the names that a refusal calls them.

    Raises:
        CheckpointError: it does something that is not kept, or has nothing of a name in `drop`.
    """
    checkpoint = checkpoint_of(source)
    folder = sentence_files(source) if checkpoint is None else None
    try:
        form = _form_of_run(checkpoint.parents[1]) if checkpoint is not None else folder and read(folder, drop)
    except CheckpointError as error:
        problem = str(error).removeprefix(f"{folder}: ").replace("drop_modules:", "model.drop_modules:")
        raise CheckpointError(f"model.init_from = {source}: {problem}") from error
    if drop and folder is None:
        raise CheckpointError(f"model.drop_modules = {[*drop]}: {source} is no folder of sentence-transformers")
    above = Path(source).absolute().parent
    if form is None and Path(source).is_dir() and (above / MODULES).is_file():
        rank_zero_warn(
            f"model.init_from = {source}: lies in {above}, whose pooling and prompts are not read; name that"
        )
    return form


def _form_of_run(run: Path) -> Form | None:
    """Return how a run makes vectors; of one that has not kept it, by its options."""
    options = options_of_run(run)
    form = kept(run / ENCODER)
    if form is None and not isinstance(options["model"].get("pooling"), str):
        return None
    data = options.get("data") or {}
    form = form or Form(options["model"]["pooling"], 0, None, {})
    lengths = [length for length in (form.max_tokens, data.get("sequence_length")) if length]
    return form._replace(prompts=form.prompts | prompts_of(data), max_tokens=max(lengths, default=None))


def load_head(head: torch.nn.Module, form: Form, source: str) -> None:
    """Copy the weights of what follows pooling out of a source.

    Raises:
        CheckpointError: they cannot be read, or do not fit.
    """
    checkpoint = checkpoint_of(source)
    if checkpoint is None:
        found = read_head(sentence_files(source), form) if form.head else {}
    else:
        found = {
            name.removeprefix(HEAD): weight
            for name, weight in read_weights(checkpoint).items()
            if name.startswith(HEAD)
        }
    load_weights(head, found, f"model.init_from = {source}")


@torch.no_grad()
def load_encoder(encoder: PreTrainedModel, source: str) -> list[str]:
    """Copy the encoder's weights out of a run, a Hugging Face folder or a hub name; returns names that are not taken.

    Raises:
        CheckpointError: they cannot be read, or do not fit.
    """
    checkpoint = checkpoint_of(source)
    if checkpoint is None:
        names = {name for name, _ in encoder.named_parameters()}
        found, left = read_pretrained(AutoModel, weights_folder(source), source, names)
        load_weights(encoder, found, source)
        return left
    weights = read_weights(checkpoint)
    prefixes = kind_of_run(checkpoint.parents[1]).encoder_prefixes
    prefix = next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in weights)), "")
    own = {name.removeprefix(prefix): weight for name, weight in weights.items() if prefix and name.startswith(prefix)}
    load_weights(encoder, own, source)
    return sorted(weights.keys() - {prefix + name for name in own})


def said_of_vectors(source: str) -> list[str]:
    """Say what a source tells of vectors, for who takes its encoder alone."""
    try:
        form = form_of(source)
    except CheckpointError as error:
        return [str(error).removeprefix(f"model.init_from = {source}: ").partition(", which is not kept")[0]]
    if form is None:
        return []
    prompts = [f"prompts ({', '.join(form.prompts)})"] if any(form.prompts.values()) else []
    return [f"pooling by {form.pooled}", *map(str, form.head), *prompts]


def tell_left(source: str, left: list[str], what: Collection[str] = ()) -> None:
    """Say what of a source is not taken.

    Args:
        source: what the user calls it.
        left: weights by their names.
        what: anything else, in words.
    """
    groups = dict.fromkeys(".".join(name.split(".")[:2]) for name in left)
    names = f"{', '.join([*groups][:4])}{', ...' if len(groups) > 4 else ''}"
    words = [*what, *([f"{len(left)} weights ({names})"] if left else [])]
    if words:
        rank_zero_warn(f"model.init_from = {source}: not taken: {'; '.join(words)}")
