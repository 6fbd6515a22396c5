"""The error of the configuration, and its wording."""

import re
from difflib import get_close_matches

# Control characters, line breaks, what turns the direction of the text after it, and broken UTF-8.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class ConfigError(Exception):
    """One or more mistakes in the configuration, each one line: key, value, place, rule, fix."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class HostError(ConfigError):
    """A mistake in the surroundings of this process, which other ranks need not share: each tells its own."""


def one_line(text: object) -> str:
    """Return a text with its line breaks, control characters and broken UTF-8 escaped."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def short(text: object) -> str:
    """Return a name for a message: on one line, and not longer than a line."""
    words = one_line(text)
    return words if len(words) <= 160 else f"{words[:80]} ... {words[-60:]}"


def meant(word: str, known: list[str], prefix: str = "") -> str:
    """Return `; did you mean ...?` for a word that is close to a known one, and nothing otherwise."""
    found = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{found[0]}?" if found else ""
