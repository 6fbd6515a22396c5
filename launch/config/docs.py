"""Docstrings: what they say about a class and about each of its arguments (Google style)."""

import re

ARGUMENT = re.compile(r"\*{0,2}`{0,2}(\w+)`{0,2}(?: \([^)]*\))?:(?: |$)(.*)")


def first_sentence(doc: str) -> str:
    """Return the first paragraph up to its first full stop."""
    paragraph = " ".join(doc.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) ", paragraph)[0]


def argument_lines(doc: str) -> dict[str, str]:
    """Return each argument's explanation from every `Args:` section, on one line."""
    found: dict[str, str] = {}
    name, indent = "", -1
    for line in doc.split("\n"):
        depth, words = len(line) - len(line.lstrip()), line.strip()
        if words in ("Args:", "Arguments:"):
            name, indent = "", 0
        elif indent < 0 or not words:
            continue
        elif indent and depth < indent:
            indent = -1  # the section has ended
        elif (match := ARGUMENT.match(words)) and depth == (indent or depth):
            name, indent = match[1], depth
            found[name] = match[2]
        elif name:
            found[name] = f"{found[name]} {words}".strip()
    return found
