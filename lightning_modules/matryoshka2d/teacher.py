"""An encoder that is not trained: the students follow its vectors in place of the last layer's."""

import hashlib
import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.publish import temporary
from lightning_modules.core.encoder_sources import encoder_config, form_of, load_encoder, load_head
from lightning_modules.core.sentence_form import Form
from lightning_modules.core.weights import unpartitioned
from lightning_modules.matryoshka2d.modeling import Embedder

KEPT = "fixed_teacher.json"  # in a run's folder: the weights that it began with


def fixed_teacher(source: str, tokenizer: PreTrainedTokenizerBase, student: Embedder, sequence_length: int) -> Embedder:
    """Open a run, a Hugging Face folder or a hub name as teacher of an encoder.

    It makes vectors as its source says, or as the student does where that says nothing.

    Raises:
        CheckpointError: there is none, or it is too narrow or too short.
    """
    try:
        with unpartitioned():
            config = encoder_config(source, tokenizer)
            form = form_of(source) or Form(student.form.pooling, 0, None, {})
            teacher = Embedder(config, form.fitted(config.hidden_size)).eval().requires_grad_(False)
            load_encoder(teacher.encoder.network, source)
            load_head(teacher.head, form, source)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("model.init_from", "model.fixed_teacher")) from error
    at = f"model.fixed_teacher = {source}"
    for theirs, ours, what in (
        (teacher.encoder.width, student.encoder.width, ""),
        (teacher.form.dim, student.form.dim, "vectors of "),
    ):
        if theirs != ours:
            raise CheckpointError(f"{at}: has {what}width {theirs}, the encoder {ours}")
    if sequence_length > (longest := teacher.encoder.max_tokens):
        raise CheckpointError(f"{at}: has {longest} positions, data.sequence_length is {sequence_length}")
    return teacher


def same_as_begun(teacher: Embedder, source: str, run: Path, goes_on: bool, keeps: bool) -> None:
    """Let a run that goes on follow the weights that it began with; `keeps` says who writes down which they are.

    Raises:
        CheckpointError: the source has other weights by now, such as those of a later step.
    """
    file, digest = run / KEPT, digest_of(teacher)
    if goes_on and file.is_file():
        try:
            begun = json.loads(file.read_text(encoding="utf-8"))["sha256"]
        except (OSError, ValueError, TypeError, KeyError):
            raise CheckpointError(f"{file}: cannot be read; delete it to go on with the teacher as it is") from None
        if begun != digest:
            raise CheckpointError(
                f"model.fixed_teacher = {source}: has other weights than when {run} began ({file.name}); name a folder "
                "with those, as `launch export` writes them, or begin a new run"
            )
    elif keeps:
        part = temporary(file)
        part.write_text(json.dumps({"source": source, "sha256": digest}) + "\n", encoding="utf-8")
        part.replace(file)


def digest_of(teacher: Embedder) -> str:
    """Return the SHA-256 of an encoder's weights and their names, and of those behind its pooling, if there are any."""
    digest = hashlib.sha256()
    for name, weight in [*sorted(teacher.encoder.state_dict().items()), *sorted(teacher.head.state_dict().items())]:
        digest.update(name.encode())
        digest.update(weight.contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
