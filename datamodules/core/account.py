"""An account of the data: what was brought, what of it is trained on, and what became of the rest.

Accounts are filled where records are read and texts are cut, and add up: that of a corpus is the sum of its shards',
so it is the same for any number of processes and parts, and it is kept beside what was prepared. It is conserved:
`records` = `used` + all that was `left_out`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from datamodules.core.errors import DataError

if TYPE_CHECKING:
    from datamodules.core.folders import Located

KEPT = {"messages": 5, "passed_over_names": 20}  # how many of them an account keeps
WARN_SHARE, REFUSE_SHARE = 0.01, 0.2  # of the tokens
NO_TOKEN = "of the texts hold no token for this tokenizer"  # as those of characters without width
UNKNOWN_FIX = "take a tokenizer that knows this writing, or train one with a larger vocabulary"
LOST_FIX = "raise data.sequence_length, or set data.examples to packed"
Accept = Literal["unknown", "lost", "columns", "labels"]


@dataclass
class Account:
    """Counts of one split or source.

    Attributes:
        files: files that were read.
        passed_over: files of the source that were not, by reason.
        passed_over_names: the first of them.
        records: documents, lines or rows that were read.
        used: records that are trained on, or judged by.
        left_out: records that are not, by reason: "empty", "refused", "in another part", "not drawn" ...
        messages: the first few refusals.
        columns: in how many records each column stood.
        columns_read: the columns whose values were used.
        duplicated: used records that say the same as one before them; they are kept.
        examples: what was made of the used records.
        texts: texts that were tokenised.
        texts_cut: those that lost their end, or their beginning.
        tokens: tokens of all texts, special ones left out, as far as they were tokenised.
        tokens_cut: those that were lost by cutting.
        characters: of the texts, as far as they were tokenised.
        characters_cut: those of very long texts that were not even tokenised.
        characters_unknown: those for which unknown tokens stand.
        unknown: tokens that the tokenizer does not know, by script.
        classes: examples of each class.
        notes: what else was counted, in words.
    """

    files: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    passed_over_names: list[str] = field(default_factory=list)
    records: int = 0
    used: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    columns: Counter[str] = field(default_factory=Counter)
    columns_read: list[str] = field(default_factory=list)
    duplicated: int = 0
    examples: int = 0
    texts: int = 0
    texts_cut: int = 0
    tokens: int = 0
    tokens_cut: int = 0
    characters: int = 0
    characters_cut: int = 0
    characters_unknown: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def see(self, columns: Iterable[str] = ()) -> None:
        """Count a record that was read, with the names of its columns."""
        self.records += 1
        for name in columns:
            self.columns[name] += 1

    def leave_out(self, reason: str) -> None:
        """Count a record that is not used."""
        self.left_out[reason] += 1

    def refuse(self, message: str) -> None:
        """Count a bad record, and keep what is wrong with the first ones."""
        self.leave_out("refused")
        if len(self.messages) < KEPT["messages"]:
            self.messages.append(message)

    def pass_over(self, found: "Located") -> None:
        """Count the files that are not read, by reason, and take over what else there is to tell of a folder."""
        self.notes.update(found.notes)
        for reason, paths in found.passed_over.items():
            self.passed_over[reason] += len(paths)
            self.passed_over_names += map(str, paths[: max(0, KEPT["passed_over_names"] - len(self.passed_over_names))])

    def read(self, *columns: str) -> None:
        """Note columns whose values are used."""
        self.columns_read += [name for name in columns if name not in self.columns_read]

    def note(self, what: str, count: int) -> None:
        """Count something in words, unless there is none of it."""
        if count:
            self.notes[what] += count

    @property
    def unread(self) -> dict[str, int]:
        """Columns that were not read, with the number of records that had them."""
        return {name: count for name, count in self.columns.items() if name not in self.columns_read}

    @property
    def num_unknown(self) -> int:
        """Tokens that the tokenizer does not know."""
        return self.unknown.total()

    @property
    def unknown_share(self) -> float:
        """Share of what the tokenizer does not know, of the tokens or of the characters, where that is more."""
        of_characters = self.characters_unknown / self.characters if self.characters else 0.0
        return max(self.num_unknown / self.tokens if self.tokens else 0.0, of_characters)

    def is_conserved(self) -> bool:
        """Say whether every record is accounted for."""
        return self.records == self.used + self.left_out.total()

    def __iadd__(self, other: "Account") -> "Account":
        for name in (entry.name for entry in fields(self)):
            mine, more = getattr(self, name), getattr(other, name)
            if isinstance(mine, Counter):
                mine.update(more)
            elif name in KEPT:
                mine += more[: KEPT[name] - len(mine)]
            elif isinstance(mine, list):
                self.read(*more)
            else:
                setattr(self, name, mine + more)
        return self

    def as_dict(self) -> dict[str, Any]:
        """Write the account as plain values, without what is nought."""
        found = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: dict(it) if isinstance(it, Counter) else it for name, it in found.items() if it}

    @classmethod
    def of(cls, known: dict[str, Any]) -> "Account":
        """Read what `as_dict` has written."""
        account = cls()
        for entry in fields(cls):
            if entry.name in known:
                kept = getattr(account, entry.name)
                setattr(account, entry.name, type(kept)(known[entry.name]))
        return account


def total(accounts: Iterable[Account]) -> Account:
    """Add accounts up, in their order."""
    found = Account()
    for account in accounts:
        found += account
    return found


def told(account: Account, split: str) -> list[str]:
    """Tell the account of a split in a few lines."""
    lines = []
    if account.passed_over:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in account.passed_over.items())
        names = ", ".join(Path(name).name for name in account.passed_over_names[:3])
        names += ", ..." if account.passed_over.total() > 3 else ""
        lines.append(f"{account.files:,} files read; passed over: {reasons} ({names})")
    if account.records:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in account.left_out.items())
        lines.append(f"{account.records:,} records read, {account.used:,} used" + (left_out and f"; not: {left_out}"))
        if account.messages:
            lines[-1] += f"; the first refused: {account.messages[0]}"
        if account.duplicated:
            lines.append(f"{account.duplicated:,} of the records used say the same as one before them")
    if account.unread:
        unread = ", ".join(f"{name!r} (in {count:,} records)" for name, count in account.unread.items())
        lines.append(f"columns read: {', '.join(map(repr, account.columns_read))}; not read: {unread}")
    if account.tokens:
        lines.append(tokens_told(account))
    lines += [f"{count:,} {note}" for note, count in account.notes.items()]
    return [*(f"{split}: {line}" for line in lines), *warned(account, split)]


def tokens_told(account: Account) -> str:
    """Tell how many tokens there are, and what became of them."""
    line = f"{account.tokens:,} tokens"
    if account.texts_cut:
        lost = share(account.tokens_cut, account.tokens)
        line += f", {lost} lost as {account.texts_cut:,} of {account.texts:,} texts were cut"
        line += f" (and {account.characters_cut:,} characters not tokenised)" if account.characters_cut else ""
    if account.unknown:
        scripts = ", ".join(f"{script} {count:,}" for script, count in account.unknown.most_common(5))
        if account.characters_unknown:
            scripts += f"; {share(account.characters_unknown, account.characters)} of the characters"
        line += f", {share(account.num_unknown, account.tokens)} unknown to the tokenizer ({scripts})"
    return line


def share(part: int, whole: int) -> str:
    """Write a share in per cent, a small one not as nought."""
    percent = 100 * part / whole
    return f"{percent:.1f}%" if percent >= 0.1 or not part else "below 0.1%"


def warned(account: Account, split: str) -> list[str]:
    """Warn, each in one line, of tokens that are lost or unknown."""
    lines = []
    if account.tokens_cut > WARN_SHARE * account.tokens:
        lines.append(f"warning: {split}: {share(account.tokens_cut, account.tokens)} of the tokens are lost by cutting")
    if account.unknown_share > WARN_SHARE:
        what = "tokens" if account.num_unknown >= account.unknown_share * account.tokens else "characters"
        lines.append(f"warning: {split}: {100 * account.unknown_share:.1f}% of the {what} are unknown")
    return lines


def check(accounts: dict[str, Account], accept: Sequence[Accept], is_corpus: bool) -> None:
    """Refuse data of which much is lost or unknown; `is_corpus`: texts are not cut because somebody said so.

    Raises:
        DataError: naming the split, the share, and the option that allows it.
    """
    for split, account in accounts.items():
        lost = account.tokens_cut / account.tokens if account.tokens and is_corpus else 0.0
        parts: list[tuple[Accept, float, str]] = [
            ("unknown", account.unknown_share, UNKNOWN_FIX),
            ("lost", lost, LOST_FIX),
        ]
        for name, part, fix in parts:
            if part > REFUSE_SHARE and name not in accept:
                raise DataError(f"data: {split}: {tokens_told(account)}; {fix}, or allow it with data.accept: [{name}]")
