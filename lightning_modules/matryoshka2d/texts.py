"""How texts are given in training, beside how the encoder was made for them."""

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.sentence_form import Form


def check_texts(form: Form, source: str | None, data: Any, goes_on: bool) -> None:
    """Refuse prompts that would count in a pooling that leaves them out; say what else differs, when a run begins.

    Args:
        form: how the encoder makes vectors.
        source: where it comes from.
        data: the data module.
        goes_on: the run has begun before, and all was said.

    Raises:
        CheckpointError: there are such prompts.
    """
    at = f"model.init_from = {source}"
    prompts = [it.prompts for it in getattr(data, "sources", {}).values() if it is not None and it.prompts]
    if prompts and not form.include_prompt:
        raise CheckpointError(
            f"{at}: pools without the tokens of a prompt, which training cannot; "
            "take the data's prompts out, or set model.drop_modules: [include_prompt]"
        )
    if goes_on:
        return
    if any(form.prompts.values()) and not prompts:
        known = ", ".join(f"{name} {text!r}" for name, text in form.prompts.items() if text)
        rank_zero_warn(
            f"{at}: has prompts ({known}), but texts are trained without any; "
            "give them as prompts of data.source; an export keeps them"
        )
    if form.max_tokens and data.sequence_length > form.max_tokens:
        rank_zero_warn(
            f"data.sequence_length = {data.sequence_length}: {source} cuts texts at {form.max_tokens} tokens; "
            "texts up to the new length are trained, and read by an export"
        )
