"""Small real tokenizers and flat batches for tests."""

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from datamodules.core.batches import TextBatch, flat_layout

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_tokenizer(vocab_size: int = 100) -> PreTrainedTokenizerFast:
    """Build a WordPiece tokenizer with the words w5, w6, ... after the special tokens."""
    words = SPECIAL + [f"w{i}" for i in range(len(SPECIAL), vocab_size)]
    core = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    names = {name.strip("[]").lower() + "_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def text_batch(lens: list[int], vocab_size: int = 100, seed: int = 0, first_sample: int = 0) -> TextBatch:
    """Build a flat batch of random sequences [CLS] A [SEP] B [SEP] (long ones) or [CLS] A [SEP]."""
    generator = torch.Generator().manual_seed(seed)
    layout = flat_layout(lens)
    sequence_T = torch.repeat_interleave(torch.arange(len(lens)), torch.tensor(lens))
    position_T = torch.arange(sum(lens)) - layout.cu_seqlens[:-1].long()[sequence_T]
    ids_T = torch.randint(len(SPECIAL), vocab_size, (sum(lens),), generator=generator)
    length_T = torch.tensor(lens)[sequence_T]
    middle_T = (position_T == length_T // 2) & (length_T >= 8)
    separator_T = (position_T == length_T - 1) | middle_T
    ids_T[separator_T], ids_T[position_T == 0] = 3, 2
    special_T = separator_T | (position_T == 0)
    maskable = torch.zeros(len(lens), dtype=torch.int64).index_add(0, sequence_T, (~special_T).long())
    return TextBatch(
        ids_T=ids_T,
        position_T=position_T,
        type_T=((position_T > length_T // 2) & (length_T >= 8)).long(),
        special_T=special_T,
        sequence_T=sequence_T,
        sample_B=torch.arange(len(lens)) + first_sample,
        layout=layout,
        lens=lens,
        maskable=maskable.tolist(),
        position=first_sample,
    )


def pad(batch: TextBatch, values_T: torch.Tensor, fill: float = 0) -> torch.Tensor:
    """Lay a flat tensor [T, ...] out as a padded one [B, L, ...]."""
    shape = (len(batch["lens"]), batch["lens"][0], *values_T.shape[1:])
    padded = torch.full(shape, fill, dtype=values_T.dtype)
    padded[batch["sequence_T"], batch["position_T"]] = values_T
    return padded
