"""Reading files, and writing them whole or not at all."""

import os
import sys
import tempfile
from pathlib import Path

from qfuse.dialects.errors import QfuseError


def read_text(name: str) -> str:
    """The text of a file, or with "-" of standard input; raises QfuseError if there is none."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise QfuseError(f"cannot read {name or 'a file without a name'}: {reason}") from None


def write_text(path: Path, text: str) -> None:
    """Write all of `text`, or leave what was there; raises QfuseError if it cannot.

    What is no regular file itself is written through: /dev/null, /dev/stdout, a link.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """The same for what is no text."""
    try:
        if path.is_symlink() or _is_special(path):
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp lets nobody else read it
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
        if _is_special(path):
            raise QfuseError(f"cannot write {path}: Not a regular file")
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        os.unlink(temporary)
    except OSError as error:
        raise QfuseError(f"cannot write {path}: {error.strerror}") from None


def _is_special(path: Path) -> bool:
    """A device or a pipe, /dev/null say, which no file may take the place of."""
    return path.exists() and not (path.is_file() or path.is_dir())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
