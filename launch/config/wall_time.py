"""Lengths of time as batch systems write them."""

import re

CLOCK = re.compile(r"(?:([0-9]{1,4})-)?([0-9]{1,5}):([0-5][0-9]):([0-5][0-9])")


def seconds_of(given: str | int) -> int | None:
    """Return the seconds of a number, "h:mm:ss" or "d-hh:mm:ss"; None for what is none of them."""
    if isinstance(given, int):
        return given
    match = CLOCK.fullmatch(given)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
