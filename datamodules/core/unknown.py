"""Counting what a tokenizer does not know, by script, and what it takes for another thing than a user may mean."""

import json
import unicodedata
from functools import lru_cache

from tokenizers import Tokenizer

from datamodules.core.account import Account

CALLED = {"CJK": "Han", "IDEOGRAPHIC": "Han", "KATAKANA-HIRAGANA": "Katakana"}
KINDS = {"S": "symbols", "P": "punctuation", "N": "numbers", "C": "control characters", "Z": "spaces"}


@lru_cache(1 << 16)
def script_of(letter: str) -> str:
    """Name the script of a character, as Latin or Han; of what belongs to none, what it is."""
    category = unicodedata.category(letter)
    if category[0] in KINDS and category not in ("Nl", "Co"):
        return KINDS[category[0]]
    first = unicodedata.name(letter, "UNNAMED").split()[0]
    return CALLED.get(first, first.capitalize())


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Find the id of what a tokenizer does not know; None where it knows everything, as by its bytes."""
    model = json.loads(tokenizer.to_str())["model"]
    return model["unk_id"] if "unk_id" in model else tokenizer.token_to_id(model.get("unk_token") or "")


class Unknown:
    """Counts the unknown tokens of texts by script, and their characters: one may stand for a line without spaces."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.id = tokenizer, unknown_id(tokenizer)
        self.special = {added.content: self.told(added.content, number)
                        for number, added in tokenizer.get_added_tokens_decoder().items() if added.special}  # fmt: skip

    def told(self, token: str, number: int) -> str:
        """Say how a special token's name is read in a text: as characters, but for some models of sentencepiece."""
        ids = self.tokenizer.encode(token, add_special_tokens=False).ids
        return f"of the texts hold {token}, which is read as {'the token' if number in ids else 'characters'}"

    def count_special(self, texts: list[str], account: Account) -> None:
        """Count the texts that hold the name of a special token."""
        for token, told in self.special.items():
            account.note(told, sum(token in text for text in texts))

    def count(self, texts: list[str], rows: list[list[int]], account: Account) -> None:
        """Add those of some texts, whose ids are `rows`; to see where they stand, such texts are encoded again."""
        account.characters += sum(map(len, texts))
        if self.id is None:
            return
        some = [text for text, ids in zip(texts, rows, strict=True) if self.id in ids]
        for text, encoding in zip(some, self.tokenizer.encode_batch(some, add_special_tokens=False), strict=True):
            places = [place for place, number in zip(encoding.offsets, encoding.ids, strict=True) if number == self.id]
            account.unknown.update(script_of(text[start]) for start, _ in places)
            account.characters_unknown += sum(end - start for start, end in places)
