"""The errors that are no fault of the program; the command line prints them without a traceback and exits with a code of their own."""


class UserError(ValueError):
    """A mistake in the input. The message is one line: the thing, its value, and the next step."""


class NotYet(UserError):
    """Nothing is wrong, but what was asked for is not there yet. The message is one line: what is under way, and the next step."""
