"""Where the tensors of a model come from: one interface over all kinds of files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from qfuse.compiler.frontend.checkpoint import Checkpoint
from qfuse.compiler.frontend.lazy_tensors import Entry
from qfuse.compiler.frontend.linear import LinearFormat
from qfuse.dialects.errors import QfuseError


class Source(Protocol):
    """An opened model file, or a directory of them.

    Tensors and layers go by the names that Hugging Face checkpoints give them.  Every method
    raises QfuseError, in one line, on what is missing or cannot be read exactly.
    """

    @property
    def path(self) -> Path:
        """What messages name."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The Hugging Face config of the model."""
        ...

    def linear_format(self, name: str, rows: int, columns: int) -> LinearFormat | None:
        """How the linear layer `name` [N, K] is stored; None if it is not quantized."""
        ...

    def load_linear(
        self, name: str, rows: int, columns: int, format: LinearFormat
    ) -> dict[str, Entry]:
        """The tensors of a quantized linear layer, named as in `LinearFormat.shapes`."""
        ...

    def plain(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Entry:
        """Any other tensor, as `dtype`."""
        ...

    def buffer(self, name: str, computed: torch.Tensor) -> torch.Tensor:
        """A buffer that transformers computes, unless the file knows better."""
        ...

    def stored_dtype(self, name: str) -> torch.dtype | None:
        """The dtype of a tensor in the file, None if there is none or it is quantized."""
        ...

    def generation(self) -> Mapping[str, Any]:
        """What is said about generating text, apart from the config."""
        ...

    def size(self) -> int:
        """Bytes of all files."""
        ...


def open_source(path: str | Path) -> Source:
    """Open a directory with a Hugging Face checkpoint, or a `.gguf` file."""
    if Path(path).suffix == ".gguf":
        from qfuse.compiler.frontend.gguf_file import GgufFile

        return GgufFile(path)
    if Path(path).is_file():
        raise QfuseError(
            f"{path} is not a directory; give the directory of a Hugging Face checkpoint, "
            "or a .gguf file"
        )
    return Checkpoint(path)
