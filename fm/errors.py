"""The one exception whose message is written for the person at the keyboard."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Bad input from outside: one line that names what was wrong and what is accepted.

    Experiments print it without a traceback and exit with code 2.
    """


@contextlib.contextmanager
def error_context(thing: object) -> Iterator[None]:
    """Gives a UserError that does not name it the thing it is about."""
    try:
        yield
    except UserError as error:
        if str(thing) in str(error):
            raise
        raise UserError(f"{thing}: {error}") from error
