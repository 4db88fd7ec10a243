"""The one exception whose message is written for the person at the keyboard."""


class UserError(ValueError):
    """Bad input from outside: one line that names what was wrong and what is accepted.

    Experiments print it without a traceback and exit with code 2.
    """
