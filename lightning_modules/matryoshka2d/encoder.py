"""Texts to vectors, by as many layers and coordinates as are wanted.

Shape suffixes: M texts, B texts of a micro-batch, T their tokens, L layers, D coordinates.
"""

import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from datamodules.core.batches import TextBatch, flat_layout
from datamodules.core.packaged import shipped
from lightning_modules.core import sentence_reading
from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.checkpoint.verify import step_folder
from lightning_modules.core.encoder_sources import encoder_config, load_encoder, load_head
from lightning_modules.core.encoders import Encoder, layer_list
from lightning_modules.core.pooling import pool
from lightning_modules.core.run_method import method_of_run
from lightning_modules.core.sentence_form import Form, Head
from lightning_modules.core.warm_start import checkpoint_of, readable
from lightning_modules.matryoshka2d.record import record_of


class MatryoshkaEncoder:
    """A sentence encoder that is run as deep as is asked for, and cut as narrow.

    What it gives at a layer and a width is what an exported model of that size gives. A text is cut to `max_tokens`, as
    in training; what it contains is text, also "[SEP]".

    Attributes:
        layers: layers N of the whole encoder; 0 is the output of the embeddings.
        dim: width of the whole vectors.
        max_tokens: longest text, in tokens, special ones included.
        prompts: what stood in front of texts in training, by name; `encode(..., prompt_name="query")`.

    Args:
        encoder: the network.
        tokenizer: its tokenizer.
        form: pooling, what follows it, width, longest text and prompts.
        device: where it runs; by default the GPU, if there is one.
        dtype: of weights and arithmetic inside, e.g. torch.bfloat16; vectors are float32 anyway.
        head: what follows pooling, with its weights; by default nothing does.
    """

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: PreTrainedTokenizerBase,
        form: Form,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        head: Head | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.encoder = encoder.to(self.device, dtype).eval().requires_grad_(False)
        self.head = (head or Head(form.head)).to(self.device, dtype).eval().requires_grad_(False)
        self.tokenizer, self.form, self.prompts = tokenizer, form, form.prompts
        self.layers, self.max_tokens = encoder.num_layers, form.max_tokens
        self.dim = min(form.dim, form.truncate or form.dim)
        self._cuts: dict[int, Encoder] = {self.layers: self.encoder}

    def __reduce__(self) -> tuple:
        """Pickle what it is made of: transformers hangs local functions on a network that has run."""
        network = self.encoder.network
        parts = (network.config, network.state_dict(), self.tokenizer, self.form, self.device, network.dtype)
        return rebuilt, (*parts, self.head.state_dict())

    def __repr__(self) -> str:
        sizes = f"layers={self.layers}, dim={self.dim}, pooling={self.form.pooled!r}, max_tokens={self.max_tokens}"
        return f"{type(self).__name__}({sizes}, prompts={self.prompts}, device={str(self.device)!r})"

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        step: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "MatryoshkaEncoder":
        """Take the encoder out of a run's folder, of its newest checkpoint or that of a step.

        Raises:
            CheckpointError: it is no run of 2D Matryoshka, or has no such checkpoint.
        """
        run = Path(run)
        record, method = record_of(run, step or 0), method_of_run(run)
        checkpoint = checkpoint_of(str(run)) if step is None else step_folder(run / "checkpoints", step)
        if type(method).__name__ != "Matryoshka2d":
            raise CheckpointError(f"{run}: is a run of {type(method).__name__}, not of 2D Matryoshka")
        if checkpoint is None or not checkpoint.is_dir():
            raise CheckpointError(f"{run}: holds no checkpoint{'' if step is None else f' of step {step}'}")
        method.recall(run)
        tokenizer = opened(run / "tokenizer")
        encoder = Encoder(method.encoder_config(tokenizer))
        load_encoder(encoder.network, str(checkpoint))
        form = method.form_for(encoder.config)
        head = Head(form.head)
        load_head(head, form, str(checkpoint))
        form = record.handed_on(form)
        return cls(encoder, tokenizer, form, device, dtype, head)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        drop_modules: Collection[str] = (),
    ) -> "MatryoshkaEncoder":
        """Open what `launch export` wrote, or another folder of sentence-transformers.

        Raises:
            CheckpointError: it is none, or does something that is not known here and not in `drop_modules`.
        """
        folder = shipped(str(folder))
        form = sentence_reading.read(Path(folder), drop_modules)
        tokenizer = opened(sentence_reading.network_folder(Path(folder)))
        try:
            with readable(folder):
                encoder = Encoder(encoder_config(folder, tokenizer, is_its_own=True))
            load_encoder(encoder.network, folder)
            head = Head(form.head)
            load_head(head, form, folder)
        except CheckpointError as error:
            raise CheckpointError(str(error).removeprefix("model.init_from = ")) from error
        longest = min(form.max_tokens or tokenizer.model_max_length, encoder.max_tokens)  # later ones write the second
        return cls(encoder, tokenizer, form._replace(max_tokens=longest), device, dtype, head)

    def encode(
        self,
        texts: Sequence[str],
        layer: int | None = None,
        dim: int | None = None,
        batch_size: int = 32,
        normalize: bool = True,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> NDArray[np.float32]:
        """Return one vector for each text, in their order, [M, dim].

        Args:
            texts: a list of strings; the empty string is a text, of special tokens alone.
            layer: how many layers are run; by default all.
            dim: how many coordinates are kept; by default all.
            batch_size: texts that are run together; those of like length are.
            normalize: scale what is kept to length one.
            prompt: stands in front of each text; by default what the folder does by default, mostly nothing.
            prompt_name: the same, as one of `prompts`.

        Raises:
            TypeError: one string in place of a list, or something that is no string.
            ValueError: the encoder has no such layer, width or prompt, or a text has no token at all.
        """
        layer, dim = self.layers if layer is None else layer, self.dim if dim is None else dim
        if not 0 <= layer <= self.layers:
            raise ValueError(f"layer = {layer}: the encoder has the layers 0 to {self.layers}")
        if not 1 <= dim <= self.dim:
            raise ValueError(f"dim = {dim}: the encoder has widths from 1 to {self.dim}")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: must be 1 or more")
        if prompt_name is not None:
            if prompt is not None or prompt_name not in self.prompts:
                known = ", ".join(self.prompts) or "none"
                raise ValueError(f"prompt_name = {prompt_name!r}: give one of {known}, and no prompt beside it")
            prompt = self.prompts[prompt_name]
        prompt = self.form.prompt if prompt is None else prompt
        vectors_MD = self._table(self.first(layer), texts, [layer], batch_size, prompt)[0, :, :dim]
        return (F.normalize(vectors_MD) if normalize else vectors_MD).numpy()

    def table(self, texts: Sequence[str], layers: Iterable[int], batch_size: int = 32) -> Tensor:
        """Return the whole vectors of several layers from one pass, neither cut nor scaled: [L, M, D] on the host."""
        return self._table(self.encoder, texts, list(layers), batch_size, "")

    @torch.inference_mode()
    def _table(self, encoder: Encoder, texts: Sequence[str], layers: list[int], size: int, prompt: str) -> Tensor:
        ids = self._ids(texts, prompt)
        table_LMD = torch.zeros(len(layers), len(ids), self.form.dim)
        skip = 0 if self.form.include_prompt or not prompt else self._length(prompt)
        for rows in by_length(ids, size):
            batch = flat_batch([ids[row] for row in rows], self.device)
            pooled = [pool(hidden_TD, batch["layout"], self.form.pooling, skip) for hidden_TD in encoder(batch, layers)]
            found = torch.stack([self.head(pooled_BD)[:, : self.form.dim] for pooled_BD in pooled])
            table_LMD[:, rows] = found.float().cpu()
        return table_LMD

    def _length(self, prompt: str) -> int:
        """Return how many tokens a prompt has in front of a text, as sentence-transformers counts them."""
        ids = self._ids([""], prompt)[0]
        return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)

    def _ids(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        if isinstance(texts, str):
            raise TypeError("texts is one string; give a list of them")
        texts = list(texts)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{number}] is a {type(text).__name__}, not a string")
            if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ValueError(f"texts[{number}] = {text[:40]!r}: holds half of a character (a lone surrogate)")
        if not texts:
            return []
        shown = [prompt + text for text in texts]
        ids = self.tokenizer(shown, truncation=True, max_length=self.max_tokens, split_special_tokens=True)["input_ids"]
        for number, own in enumerate(ids):
            if not own:
                raise ValueError(f"texts[{number}] = {texts[number]!r}: has no token in this encoder's tokenizer")
        return ids

    def first(self, layers: int) -> Encoder:
        """Return an encoder of the first layers alone, one at least; weights are shared with the whole one."""
        layers = max(1, layers)
        if layers not in self._cuts:
            self._cuts[layers] = shallow(self.encoder, layers)
        return self._cuts[layers]


def rebuilt(
    config: PreTrainedConfig,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    form: Form,
    device: torch.device,
    dtype: torch.dtype,
    head_weights: dict[str, Tensor],
) -> MatryoshkaEncoder:
    """Put an encoder together again."""
    encoder, head = Encoder(config), Head(form.head)
    encoder.network.load_state_dict(weights)
    head.load_state_dict(head_weights)
    return MatryoshkaEncoder(encoder, tokenizer, form, device, dtype, head)


def opened(folder: Path) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a folder.

    Raises:
        CheckpointError: it is damaged, or its file of words is missing.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the libraries raise a dozen kinds, also a bare Exception
        raise CheckpointError(f"{folder}: its tokenizer cannot be opened ({' '.join(str(error).split())})") from error
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise CheckpointError(f"{folder}: its tokenizer holds special tokens alone; its file of words is missing")
    return tokenizer


def shallow(encoder: Encoder, layers: int) -> Encoder:
    """Return an encoder of the first layers that shares the weights; `core.encoders.cut` copies them."""
    network = encoder.network
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    found = copy.deepcopy(encoder, shared)
    parent, _, name = layer_list(found.network).rpartition(".")
    kept = list(found.network.get_submodule(layer_list(found.network)))[:layers]
    setattr(found.network.get_submodule(parent), name, nn.ModuleList(kept))
    found.config.num_hidden_layers = layers
    return found


def by_length(ids: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Yield the rows of micro-batches: longest texts first, so that a lack of memory shows at once."""
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def flat_batch(ids: Sequence[Sequence[int]], device: torch.device) -> TextBatch:
    """Lay texts end to end, longest first; the batch has what an encoder reads, without what training needs besides."""
    lens = [len(own) for own in ids]
    layout = flat_layout(lens)
    place = torch.cat([torch.arange(length) for length in lens])
    tensors = {name: value.to(device) for name, value in layout._asdict().items() if isinstance(value, Tensor)}
    ids_T = torch.tensor(list(chain.from_iterable(ids)), device=device)
    return {
        "ids_T": ids_T,
        "position_T": place.to(device),
        "type_T": torch.zeros_like(ids_T),
        "layout": layout._replace(**tensors),
        "lens": lens,
    }
