"""A model imported once and compiled as often as a test wants: torch's export takes its time."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qfuse.compiler.compilation import compile_imported
from qfuse.compiler.frontend.huggingface import import_checkpoint
from qfuse.compiler.frontend.imported import Imported
from qfuse.compiler.frontend.module import import_module
from qfuse.compiler.options import CompileOptions
from qfuse.compiler.runtime.executable import Executable
from qfuse.dialects.bindings import ir


class ImportedOnce:
    """What `compile` makes of a file or a module, with these fusions off or those."""

    def __init__(self, imported: Imported) -> None:
        self._imported = imported
        self._text = imported.module.operation.get_asm(enable_debug_info=True)
        self._made: dict[tuple[str, ...], Executable] = {}

    def compile(self, *disable: str) -> Executable:
        """A program for the CPU; the same one where it was asked for before."""
        if disable not in self._made:
            module = ir.Module.parse(self._text, self._imported.context)
            options = CompileOptions.make("cpu", disable)
            self._made[disable] = compile_imported(replace(self._imported, module=module), options)
        return self._made[disable]


def file_once(path: Path, max_len: int, logits: str = "all") -> ImportedOnce:
    """A checkpoint or a GGUF file."""
    return ImportedOnce(import_checkpoint(path, max_len=max_len, logits=logits))


def module_once(
    module: torch.nn.Module, example_inputs: Sequence[torch.Tensor], dynamic_shapes: Any = None
) -> ImportedOnce:
    return ImportedOnce(import_module(module, example_inputs, dynamic_shapes))
