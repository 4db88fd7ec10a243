"""`UserError`: the exception whose message is shown to the user without a traceback."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Bad input from the user; the message, one line, names the problem and the accepted input.

    Experiments print it without a traceback and exit with code 2.
    """


@contextlib.contextmanager
def error_context(subject: object) -> Iterator[None]:
    """Prefixes `subject` to the message of a UserError raised in the block, if it lacks it."""
    try:
        yield
    except UserError as error:
        if str(subject) in str(error):
            raise
        raise UserError(f"{subject}: {error}") from error
