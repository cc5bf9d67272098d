"""The one exception type a user of qfuse sees."""


class QfuseError(Exception):
    """Bad input or an unsupported request.

    The text is one line that says what is wrong, where, and the nearest thing that is supported.
    The command-line tools print it after `error: ` and exit with 1, without a traceback.
    """
