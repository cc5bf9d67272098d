"""Tensors by name that need not all be in memory at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch


@dataclass(frozen=True)
class Filled:
    """What makes a tensor of this shape and type, also in a place that somebody else has for it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: Callable[[torch.Tensor], None]
    """Writes all elements of such a tensor."""

    def __call__(self) -> torch.Tensor:
        made = torch.empty(self.shape, dtype=self.dtype)
        self.fill(made)
        return made


Entry: TypeAlias = torch.Tensor | Filled | Callable[[], torch.Tensor]
"""A tensor, or what makes it."""


class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors by name, some of them made anew each time they are read.

    The stacked experts of a layer are copies.  Made when the compiler packs them and forgotten
    afterwards, they take the memory of one layer and not that of the model.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> torch.Tensor:
        entry = self._entries[name]
        return entry if isinstance(entry, torch.Tensor) else entry()

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Put a tensor into `out`, of its shape and type, without another copy on the way."""
        entry = self._entries[name]
        if isinstance(entry, Filled):
            entry.fill(out)
        else:
            out.copy_(self[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def replace(self, entries: Mapping[str, Entry]) -> "LazyTensors":
        """These tensors, with others in the place of those that `entries` names."""
        return LazyTensors({**self._entries, **entries})

    def select(self, names: Sequence[str]) -> "LazyTensors":
        """Those of the given names, in that order."""
        return LazyTensors({name: self._entries[name] for name in names})
