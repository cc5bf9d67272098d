"""Noticing that a tensor holds something else than it did."""

from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Held:
    """What a tensor held at some time.

    Its storage is held weakly: its memory may go, but no other storage takes its name while this
    lives, as one that is made where another was freed takes its address.
    """

    stamp: Stamp
    storage: StorageWeakRef


def stamp(tensor: torch.Tensor) -> Stamp:
    """Differs where the content may; equal to that of `held` only as long as that is kept.

    A change through `.data` leaves no trace, nor does any change of an inference tensor.
    """
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()), version


def held(tensor: torch.Tensor) -> Held:
    """What `tensor` holds now, to compare its `stamp` with later."""
    return Held(stamp(tensor), StorageWeakRef(tensor.untyped_storage()))
