"""A cached file: data and bytes, written whole, and never trusted when it was damaged.

digest of the rest (32 bytes) | one line of JSON | bytes
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

_DIGEST_BYTES = 32


def read_cached(path: Path) -> tuple[Any, bytes] | None:
    """The data and the bytes in a file, or None if there is none or it is not whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    header, _, rest = body.partition(b"\n")
    try:
        return json.loads(header), rest
    except ValueError:
        return None


def write_cached(path: Path, data: Any, content: bytes) -> None:
    """Put the file in place at once, so that a reader, in any process, sees all of it or nothing.

    A directory that cannot be written is no error: what is cached can be made again.
    """
    body = json.dumps(data).encode() + b"\n" + content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(body).digest() + body)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
