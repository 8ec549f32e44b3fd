"""The one error that is the user's to mend; the command line prints it without a traceback and exits with 2."""


class UserError(ValueError):
    """A mistake in the input. The message is one line: the thing, its value, and the next step."""
