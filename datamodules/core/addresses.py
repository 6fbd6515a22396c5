"""Names that are addresses of other stores, as s3://bucket/texts: only local paths are read and written."""

import re

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?://|(?=:[A-Za-z]))")  # also that of fsspec's chains, zip::s3://


def address_problem(name: str | None) -> str | None:
    """Say what is wrong with a name that is an address, and what to do; None with any other."""
    scheme = SCHEME.match(name) if isinstance(name, str) else None
    if scheme is None:
        return None
    fix = "write the path alone" if scheme[0].lower() == "file://" else "give a path of this machine"
    return f"is an address ({scheme[0]}), and only local paths are read and written; {fix}"
