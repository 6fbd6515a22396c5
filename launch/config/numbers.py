"""Numbers that stand in words: of the command line, the environment, and names of files."""

import re


def is_whole(word: str) -> bool:
    """Tell whether a word is a whole number in ASCII digits, not longer than what anything here counts."""
    return re.fullmatch("[0-9]{1,18}", word) is not None


def port_problem(word: str) -> str | None:
    """Say what is wrong with MASTER_PORT, None where it is a port."""
    if is_whole(word) and 0 < int(word) < 2**16:
        return None
    return f"MASTER_PORT = {word!r} (environment): expected a number from 1 to 65535; unset it"
