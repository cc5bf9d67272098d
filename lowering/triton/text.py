"""Kernels as text that Triton reads; needs no MLIR.

Operations of `tt` are in generic form, which every version reads.  Some spellings are not ours:

| ours | Triton 3.6 | Triton 3.9 |
|---|---|---|
| `tt.reduce_return` | `tt.reduce.return` | `tt.reduce.return` |
| `tt.scan_return` | `tt.scan.return` | `tt.scan.return` |
| `!tt.tensordesc<tensor<128x64xbf16>>` | the same | `!tt.tensordesc<128x64xbf16>` |
"""

import re
from typing import Literal

Spelling = Literal["tensor", "plain"]
"""How a version of Triton writes the block of a descriptor type."""

_LOCATION = re.compile(r' loc\((?:#loc\d*|unknown|"[^"]*":\d+:\d+)\)')
_LOCATION_LINES = re.compile(r"^#loc\d* = .*\n", re.MULTILINE)
_DESC = re.compile(r"!tt\.tensordesc<tensor<([^<>]*)>>")


def respell(text: str, spelling: Spelling) -> str:
    """Text of `module.module_text` as a version of Triton with that spelling reads it."""
    return _DESC.sub(r"!tt.tensordesc<\1>", text) if spelling == "plain" else text


def without_locations(text: str) -> str:
    """MLIR text without the places of its operations, which name a temporary file."""
    return _LOCATION.sub("", _LOCATION_LINES.sub("", text))
