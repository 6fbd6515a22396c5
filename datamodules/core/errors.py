"""The error of everything that is wrong with data."""


class DataError(Exception):
    """One line: the file or key, its value, the rule that it breaks, and a fix."""


class MissingLabel(DataError):
    """A record has no label where one is wanted."""
