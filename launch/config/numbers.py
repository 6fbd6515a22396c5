"""Numbers that stand in words: of the command line, the environment, and names of files."""

import re


def is_whole(word: str) -> bool:
    """Tell whether a word is a whole number in ASCII digits, not longer than what anything here counts."""
    return re.fullmatch("[0-9]{1,18}", word) is not None
