"""Whether text is read with the ids that an encoder was trained with."""

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_modules.core.checkpoint.errors import CheckpointError
from lightning_modules.core.warm_start import quiet

TEXTS = (
    "",
    "A quick Brown fox, it's 1,234.50!  Naïve CAFÉ; e-mail me@site.org",
    "Привет, мир. Ελληνικά; tiếng Việt ﬁne ½",
    "東京は夜の七時。 我们喝茶。 서울 ภาษาไทย हिन्दी عربي עברית",
    "def f(x_1): return [x**2 for x in {x_1}]\n\t# tab \U0001f600\u200d",
)
FILES = ("*token*", "*vocab*", "*.model", "merges.txt")  # one of which a tokenizer has
WORDS, A_TEXT = 1000, 20  # words of the vocabulary that are looked at, and how many make one text


def same_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str, source: str) -> None:
    """Refuse to read text with other ids than those that an encoder was trained with.

    Args:
        tokenizer: that of the data.
        folder: a folder or hub name with the encoder's own: tokenizer.json, vocab.txt or a model of sentencepiece.
        source: what the user calls the encoder.

    Raises:
        CheckpointError: they give other ids, or the encoder's own cannot be opened.
    """
    if not hasattr(tokenizer, "get_vocab"):  # a plan knows the size of the vocabulary alone
        return
    own = _own(folder, source)
    if own is None:
        rank_zero_warn(f"model.init_from = {source}: holds no tokenizer, so data.tokenizer is not compared with it")
        return
    with quiet():  # probes may be longer than a text should be
        problem = difference(own, tokenizer)
    if problem:
        raise CheckpointError(
            f"model.init_from = {source}: was trained with another tokenizer; set data.tokenizer to {folder} "
            f"({problem})"
        )


def difference(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """Say where two tokenizers differ: in their vocabularies, or in the ids of a text."""
    if own.get_vocab() != other.get_vocab():
        return "their vocabularies differ"
    for text in probes(own):
        ids, theirs = (it(text, split_special_tokens=True)["input_ids"] for it in (own, other))
        if ids != theirs:
            shown = [" ".join(own.convert_ids_to_tokens(found)[:8]) for found in (ids, theirs)]
            return f"{text[:40]!r} becomes {shown[0]} and {shown[1]}"
    return None


def _own(folder: str, source: str) -> PreTrainedTokenizerBase | None:
    """Open the encoder's tokenizer; None where it has none."""
    try:
        with quiet():
            found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the libraries raise a dozen kinds, also a bare Exception
        if not any(file for pattern in FILES for file in Path(folder).glob(pattern)):
            return None
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"model.init_from = {source}: its tokenizer cannot be opened, to be compared with data.tokenizer ({reason})"
        ) from error
    return found if len(found) > len(set(found.all_special_tokens)) else None


def probes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return texts in several scripts, and texts of words from the whole vocabulary."""
    special = set(tokenizer.all_special_tokens)
    words = [word for word in sorted(tokenizer.get_vocab()) if word not in special]
    words = words[:: max(1, len(words) // WORDS)]
    shown = [tokenizer.convert_tokens_to_string([word]).strip() for word in words]
    return [*TEXTS, *(" ".join(shown[start : start + A_TEXT]) for start in range(0, len(shown), A_TEXT))]
