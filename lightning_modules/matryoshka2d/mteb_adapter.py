"""One cell of an encoder as a model that MTEB evaluates; an exported folder needs nothing of this."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_modules.matryoshka2d.encoder import MatryoshkaEncoder

if TYPE_CHECKING:
    from mteb.models import ModelMeta


class MtebEncoder:
    """What `mteb.evaluate` takes as a model, of mteb 2 (its EncoderProtocol).

    Queries and documents of retrieval get the prompts `query` and `document`; other texts get none.

    Args:
        encoder: the encoder.
        name: how MTEB calls the model, OWNER/NAME; layer and width are added to it.
        layer: how many layers are run; by default all.
        dim: how many coordinates are kept; by default all.
        batch_size: texts that are run together, unless the evaluation says so.
        prompts: those of `query` and `document`; by default those of the training.

    Raises:
        ValueError: sources of the training had prompts of their own, and none are given.
    """

    def __init__(
        self,
        encoder: MatryoshkaEncoder,
        name: str,
        layer: int | None = None,
        dim: int | None = None,
        batch_size: int = 32,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        self.encoder, self.batch_size = encoder, batch_size
        self.prompts = encoder.prompts if prompts is None else prompts
        if self.prompts and not {"query", "document"} & {*self.prompts}:
            raise ValueError(
                f"prompts: the training had {', '.join(self.prompts)}; say which are meant with "
                'prompts={"query": "...", "document": "..."}'
            )
        self.layer, self.dim = encoder.layers if layer is None else layer, encoder.dim if dim is None else dim
        self.name = f"{name if '/' in name else f'local/{name}'}_{self.layer}x{self.dim}"

    @property
    def mteb_model_meta(self) -> "ModelMeta":
        """What MTEB notes beside the results."""
        from mteb.models import ModelMeta

        facts = {"name": self.name, "revision": "local", "embed_dim": self.dim, "max_tokens": self.encoder.max_tokens}
        return ModelMeta.create_empty({**facts, "framework": ["PyTorch"]})

    def encode(self, inputs: Any, *, prompt_type: Any = None, **options: Any) -> NDArray[np.float32]:
        """Encode the texts of a loader whose batches are mappings with `text`.

        Raises:
            ValueError: a batch holds no text, as those of images.
        """
        texts: list[str] = []
        for batch in inputs:
            if "text" not in batch:
                raise ValueError(f"inputs: a batch holds {', '.join(batch)}; only text can be encoded")
            texts += batch["text"]
        prompt = self.prompts.get(getattr(prompt_type, "value", prompt_type), "") if prompt_type else ""
        size = options.get("batch_size") or self.batch_size
        return self.encoder.encode(texts, self.layer, self.dim, size, prompt=prompt)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
        """Return the cosines of all vectors with all others; they have length one."""
        return np.atleast_2d(embeddings1) @ np.atleast_2d(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> NDArray[np.float32]:
        """Return the cosine of each vector with its partner."""
        return (np.asarray(embeddings1) * np.asarray(embeddings2)).sum(-1)
