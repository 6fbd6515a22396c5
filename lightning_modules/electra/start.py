"""The weights that ELECTRA's two networks begin with, where they come from elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.reader import read_weights
from lightning_modules.core.run_method import method_of_run
from lightning_modules.core.same_tokenizer import same_tokenizer
from lightning_modules.core.source_files import tokenizer_of
from lightning_modules.core.warm_start import checkpoint_of, load_pretrained, load_weights
from lightning_modules.core.weights import whole

if TYPE_CHECKING:
    from lightning_modules.electra.module import Electra

GENERATOR = "model.init_generator_from"


def warm_start(method: "Electra", source: str) -> None:
    """Start from a run, from what `export` wrote, or from a discriminator (a masked language model for `mlm`).

    Of a discriminator alone the generator is the one that `init_generator_from` names, or begins fresh, which is said.

    Raises:
        CheckpointError: a source cannot be read or does not fit, or brings a generator beside the one that is named.
    """
    folder, model = Path(source), method.model
    if method._trainer is not None:  # on a run of ours, its data module has opened one
        same_tokenizer(method.trainer.datamodule.tokenizer, tokenizer_of(source), source)
    checkpoint = checkpoint_of(source)
    brings_pair = checkpoint is not None or (folder / "generator").is_dir()
    if method.init_generator_from and brings_pair:
        raise CheckpointError(f"{GENERATOR} = {method.init_generator_from}: {source} brings a generator; leave one out")
    if checkpoint is not None:
        _refuse_other_heads(method, checkpoint.parents[1], source)
        load_weights(method, read_weights(checkpoint), source)
    elif method.task == "mlm":
        load_pretrained(model.network, source)
    else:
        inner = folder / "discriminator"
        load_pretrained(model.discriminator.network, str(inner) if inner.is_dir() else source)
        if model.generator is not None:
            _start_generator(method, str(folder / "generator") if brings_pair else method.init_generator_from, source)


def _refuse_other_heads(method: "Electra", run: Path, source: str) -> None:
    """Compare what no shape of a weight shows; a checkpoint that lies alone does not say it."""
    heads = getattr(method_of_run(run), "num_heads", None) if (run / "config.yaml").is_file() else method.num_heads
    if heads != method.num_heads:
        raise CheckpointError(
            f"model.init_from = {source}: has model.num_heads = {heads}, the model built here {method.num_heads}"
        )


def _start_generator(method: "Electra", generator: str | None, source: str) -> None:
    """Copy the generator's weights; what it shares with the discriminator must be alike in both."""
    if generator is None:
        shared = {
            "embeddings": ", but for the embeddings that it shares",
            "all": ", but for its encoder, which is shared",
        }
        rank_zero_warn(
            f"model.init_from = {source}: is a discriminator alone; the generator begins with fresh weights"
            f"{shared.get(method.tying, '')}; name one by {GENERATOR}"
        )
        return
    network = method.model.generator.network
    own = {id(parameter) for parameter in method.model.discriminator.parameters()}
    shared = {name: parameter for name, parameter in network.named_parameters() if id(parameter) in own}
    with whole(shared.values()):
        before = {name: parameter.detach().clone() for name, parameter in shared.items()}
    try:
        load_pretrained(network, generator)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("model.init_from", GENERATOR)) from error
    with whole(shared.values()):
        different = [name for name, weight in before.items() if not torch.equal(weight, shared[name])]
    if different:
        raise CheckpointError(
            f"{GENERATOR} = {generator}: has another {different[0]} than {source}, and model.tying = {method.tying} "
            "shares it; take a generator that was trained with it, or model.tying none"
        )
