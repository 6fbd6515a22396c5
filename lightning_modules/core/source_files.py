"""Where the files of an encoder lie that is named by a folder, a hub name or a package."""

from functools import lru_cache
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.core.packaged import shipped
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.sentence_reading import MODULES, network_folder
from lightning_modules.core.warm_start import checkpoint_of

# of a hub name, what a folder of sentence-transformers holds besides the network and the tokenizer of the usual layout
SMALL = [MODULES, "config_sentence_transformers.json", "sentence_*_config.json", "[0-9]_*/*"]


def weights_folder(source: str) -> str:
    """Return the Hugging Face folder or hub name behind a source.

    Of an exported ELECTRA it is the discriminator, of a folder of sentence-transformers where its network lies.

    Raises:
        CheckpointError: a package that is known to carry a model, and is not installed; no network in the folder.
    """
    source = packaged(source)
    inner = Path(source, "discriminator")
    if inner.is_dir():
        return str(inner)
    folder = sentence_files(source)
    if folder is None:
        return source
    try:
        network = network_folder(folder)
    except CheckpointError as error:
        raise CheckpointError(f"model.init_from = {source}: {str(error).removeprefix(f'{folder}: ')}") from error
    return source if network == folder else str(network)


def tokenizer_of(source: str) -> str:
    """Return the folder or hub name with the tokenizer of a source."""
    checkpoint = checkpoint_of(source)
    return weights_folder(source) if checkpoint is None else str(checkpoint.parents[1] / "tokenizer")


def packaged(source: str) -> str:
    """Return the folder of a package that carries a model, any other source as it is.

    Raises:
        CheckpointError: the package is not installed.
    """
    try:
        return shipped(source)
    except FileNotFoundError as error:
        raise CheckpointError(f"model.init_from = {source}: {error}") from None


def sentence_files(source: str) -> Path | None:
    """Return the folder of sentence-transformers that a source is; None if it is none, or is not there at all.

    Of a hub name, its small files are fetched.
    """
    folder = Path(packaged(source))
    if not folder.exists():
        folder = _of_hub(source) if source.count("/") <= 1 and source[:1] not in ("/", ".", "~") else None
    return folder if folder is not None and (folder / MODULES).is_file() else None


@lru_cache
def _of_hub(name: str) -> Path | None:
    try:
        folder = Path(snapshot_download(name, allow_patterns=SMALL, ignore_patterns=["*.onnx", "*.msgpack", "*.h5"]))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError):  # who reads its configuration says what is wrong
        return None
    if constants.HF_HUB_OFFLINE and not (folder / MODULES).is_file():
        rank_zero_warn(
            f"model.init_from = {name}: its copy on this machine holds no {MODULES}, and the hub is not asked "
            "(HF_HUB_OFFLINE); if it is a model of sentence-transformers, its pooling and prompts are not known"
        )
    return folder
