"""Writing files whole or not at all."""

import os
import tempfile
from pathlib import Path

from qfuse.dialects.errors import QfuseError


def write_text(path: Path, text: str) -> None:
    """Write all of `text`, or leave what was there; raises QfuseError if it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise QfuseError(f"cannot write {path}: {error.strerror}") from None


def check_writable(path: Path) -> None:
    """Find out that `path` cannot be written before work is put into it; leaves no trace."""
    try:
        if path.is_dir():
            raise QfuseError(f"cannot write {path}: Is a directory")
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        os.unlink(temporary)
    except OSError as error:
        raise QfuseError(f"cannot write {path}: {error.strerror}") from None
