"""Kernels as text that Triton reads.

Operations of `tt` are in generic form, which every version reads.  Two spellings are not ours:

| ours | Triton 3.6 | Triton 3.9 |
|---|---|---|
| `tt.reduce_return` | `tt.reduce.return` | `tt.reduce.return` |
| `!tt.tensordesc<tensor<128x64xbf16>>` | the same | `!tt.tensordesc<128x64xbf16>` |
"""

import re
from typing import Literal

from qfuse.dialects.bindings import ir

Spelling = Literal["tensor", "plain"]
"""How a version of Triton writes the block of a descriptor type."""

_DESC = re.compile(r"!tt\.tensordesc<tensor<([^<>]*)>>")


def module_text(module: ir.Module) -> str:
    """The module as text for `respell`; names are as in Triton."""
    return str(module).replace('"tt.reduce_return"', '"tt.reduce.return"')


def respell(text: str, spelling: Spelling) -> str:
    """Text of `module_text` as a version of Triton with that spelling reads it."""
    return _DESC.sub(r"!tt.tensordesc<\1>", text) if spelling == "plain" else text
