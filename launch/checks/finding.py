"""What a check found: one line, and for a mistake how to mend it."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One line of the doctor; without a fix all is well."""

    subject: str
    text: str
    fix: str | None = None

    def line(self) -> str:
        """Return it as it is printed."""
        return f"{'fix ' if self.fix else 'ok  '} {self.subject:<9} {self.text}" + (f"; {self.fix}" if self.fix else "")
