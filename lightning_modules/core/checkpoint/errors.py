"""The one error of this package."""


class CheckpointError(Exception):
    """A checkpoint cannot be written, read or trusted; the message is one line that names the file and the fault."""
