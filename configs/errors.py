"""What the person who runs Terse can mend."""


class UserError(ValueError):
    """A mistake in what was given: a setting, a file, an address, a directory.

    Its text is one line that names the key or file, what was expected and what was found. The command line shows that line
    and no traceback. Everything else that goes wrong keeps its traceback, in a log file.
    """
