"""Text of any writing: nothing is lost, a trained vocabulary covers it, and what is unknown is told by script."""

import inspect
import random
from collections import Counter
from pathlib import Path

import pytest

from datamodules.core import segments, wordpiece
from datamodules.core.errors import DataError
from datamodules.core.unknown import script_of
from datamodules.core.wordpiece import SPECIAL_TOKENS, TokenizerOptions, WordPieceTraining, alphabet_of
from datamodules.text import TextCorpus
from tests.pairs import saved_tokenizer

HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 1800)))
THAI = "กขคงจฉชซญดตถทธนบปผฝพฟภมยรลวศสหอฮะาำิีึืุูเแโใไ่้"
DEVANAGARI = "अआइईउऊएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसहािीुूेैोौं"
ARABIC = "ابتثجحخدذرزسشصضطظعغفقكلمنهوي"
KANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをん"


def written(letters: str, between: str, ends: list[str], seed: int, documents: int = 60) -> list[str]:
    """Documents of one line each: words of the letters, put together as the writing does."""
    source, found = random.Random(seed), []
    words = ["".join(source.choices(letters, k=source.randrange(1, 7))) for _ in range(800)]
    for _ in range(documents):
        sentences = (
            between.join(source.choices(words, k=source.randrange(3, 40))) for _ in range(source.randrange(2, 25))
        )
        found.append("".join(sentence + source.choice(ends) for sentence in sentences).strip())
    return found


CODE = [inspect.getsource(module) for module in (segments, wordpiece)] * 3
WRITINGS = {
    "Chinese": written(HAN, "", ["。", "！", "？", "。”"], 1),
    "Japanese": written(KANA + HAN[:300], "", ["。", "、", "？"], 2),
    "Thai": written(THAI, "", [" ", "  "], 3),
    "Hindi": written(DEVANAGARI, " ", ["। ", "? "], 4),
    "Arabic": written(ARABIC, " ", [". ", "؟ ", "، "], 5),
    "lower-case English": written("etaoinshrdlu", " ", [". ", ", ", " - "], 6),
    "code": [text.replace("\n\n", "\n") for text in CODE],
    "words of hundreds of letters": [" ".join(["".join(random.Random(7).choices("abcdefgh", k=900))] * 9)] * 3,
    "emoji": written("😀😁😂🤣😃😄👍🏽", " ", ["!", " "], 8),
}


@pytest.mark.parametrize("name", WRITINGS)
@pytest.mark.parametrize("length", [32, 128])
def test_segments_keep_what_packed_keeps(tmp_path: Path, name: str, length: int) -> None:
    source = tmp_path / "a.txt"
    source.write_text("\n\n".join(WRITINGS[name]), encoding="utf-8")
    accounts = {}
    for examples in ("segments", "packed"):
        tokenizer = TokenizerOptions(train=WordPieceTraining(6000))
        options = {"validation_fraction": 0.0, "num_prepare_processes": 1, "cache_dir": str(tmp_path / "cache")}
        data = TextCorpus(tokenizer, 4, 4, str(source), sequence_length=length, examples=examples, **options)
        data.prepare_data()
        data.setup()
        accounts[examples] = data.accounts()["train"]
        special = data.token_counts()
    kept = accounts["segments"].tokens - accounts["segments"].tokens_cut
    assert kept >= 0.99 * accounts["packed"].tokens > 0 and special.sum() > 0
    assert accounts["segments"].num_unknown <= 0.001 * kept, accounts["segments"].unknown


def test_rows_of_a_corpus_hold_what_its_account_says(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(WRITINGS["Thai"]), encoding="utf-8")
    data = TextCorpus(TokenizerOptions(train=WordPieceTraining(500)), 4, 4, source=str(tmp_path / "a.txt"),
                      sequence_length=32, num_prepare_processes=1, cache_dir=str(tmp_path / "cache"))  # fmt: skip
    data.prepare_data()
    data.setup()
    for split, account in data.accounts().items():
        corpus = data.corpora[split]
        special = sum(int(data.is_special()[ids].sum()) for ids in corpus.ids)
        assert account.tokens - account.tokens_cut == corpus.num_tokens - special
        assert account.is_conserved() and account.examples == corpus.num_rows and account.tokens_cut == 0
    train, val = data.accounts()["train"], data.accounts()["val"]
    assert train.used + val.used == train.records == val.records == 60


def test_an_alphabet_is_as_large_as_the_text_needs() -> None:
    rare = Counter({letter: 1 for letter in HAN}) + Counter(a=100_000)
    assert len(alphabet_of(rare, 40_000)) > 1700, "a rare character each, but together above a ten thousandth"
    rare["a"] = 10**9
    assert len(alphabet_of(rare, 40_000)) == 1000, "as in BERT"
    assert len(alphabet_of(rare, 400)) == (400 - len(SPECIAL_TOKENS)) // 4
    many = Counter({letter: 5 for letter in HAN})
    assert 700 < len(alphabet_of(many, 1000)) <= 750, "at most three quarters of the vocabulary"


def test_what_a_vocabulary_leaves_out_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(WRITINGS["Chinese"]), encoding="utf-8")
    options = {"validation_fraction": 0.0, "num_prepare_processes": 1, "cache_dir": str(tmp_path / "cache")}
    tokenizer = TokenizerOptions(train=WordPieceTraining(1000))
    data = TextCorpus(tokenizer, 4, 4, source=str(tmp_path / "a.txt"), **options)
    with pytest.raises(
        DataError, match=r"data: train: .* unknown to the tokenizer \(Han .*\); take .*data\.accept: \[unk"
    ):
        data.prepare_data()
    for _ in ("made", "found"):
        data = TextCorpus(tokenizer, 4, 4, source=str(tmp_path / "a.txt"), accept=["unknown"], **options)
        data.prepare_data()
        data.setup()
        lines = data.describe()
        assert "tokenizer: it folds case and strips accents" in lines
        assert any("characters are left out of its vocabulary, " in line for line in lines)
        assert any(line.startswith("warning: train: ") and line.endswith("of the tokens are unknown") for line in lines)
        assert data.report()["train"]["unknown"]["Han"] > 1000


def test_scripts_have_their_names() -> None:
    letters = {
        "a": "Latin",
        "中": "Han",
        "あ": "Hiragana",
        "ア": "Katakana",
        "ก": "Thai",
        "अ": "Devanagari",
        "ا": "Arabic",
    }
    letters |= {"я": "Cyrillic", "한": "Hangul", "α": "Greek", "😀": "symbols", "。": "punctuation", "5": "numbers"}
    assert {letter: script_of(letter) for letter in letters} == letters


def test_unknown_tokens_are_counted_by_script(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w5 w6 中文 w7 привет w8 w9 " * 3, encoding="utf-8")
    data = TextCorpus(TokenizerOptions(saved_tokenizer(tmp_path / "t")), 4, 4, source=str(tmp_path / "a.txt"),
                      validation_fraction=0.0, accept=["unknown"], cache_dir=str(tmp_path / "cache"))  # fmt: skip
    data.prepare_data()
    account = data.accounts()["train"]
    assert (
        account.unknown["Cyrillic"] == 3
        and account.unknown["Han"] in (3, 6)
        and account.unknown.keys() == {"Cyrillic", "Han"}
    )
