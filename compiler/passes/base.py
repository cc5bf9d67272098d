"""What a pass is: a named, documented, frozen bag of options with a `run`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from qfuse.dialects.bindings import ir


@dataclass(frozen=True)
class Pass(ABC):
    """A transformation of a whole module.

    The fields of a subclass are its options: bool, int, str, or a tuple of str.  The first line
    of its docstring is its help text.  A pass keeps no state between runs.
    """

    name: ClassVar[str]

    @abstractmethod
    def run(self, module: ir.Operation) -> None: ...
