"""The error of the configuration, and its wording."""

from difflib import get_close_matches


class ConfigError(Exception):
    """One or more mistakes in the configuration, each one line: key, value, place, rule, fix."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


def meant(word: str, known: list[str], prefix: str = "") -> str:
    """Return `; did you mean …?` for a word that is close to a known one, and nothing otherwise."""
    found = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{found[0]}?" if found else ""
