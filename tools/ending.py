"""How a command ends: its exit code, and one line on stderr where something went wrong."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from qfuse.dialects.errors import QfuseError

INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Raises QfuseError for wrong arguments, which argparse answers with its usage and exit code 2.

    Subcommands get parsers of this class, too.
    """

    def error(self, message: str) -> NoReturn:
        raise QfuseError(f"{message}; see {self.prog} --help")


def exit_code(name: str, command: Callable[[], int]) -> int:
    """What `command()` returns; 1 after bad input or failed output, 130 after Ctrl-C."""
    try:
        code = command()
        if sys.stdout is not None:  # None where the caller closed it
            sys.stdout.flush()
        return code
    except QfuseError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:  # a full disk, say; what reads files names them in a QfuseError
        _drop_output()
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1


def _drop_output() -> None:
    """Let what stdout still holds go nowhere: Python writes it when it exits, and would fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
