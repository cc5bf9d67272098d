"""Checks the promises `tt.divisibility`, `tt.contiguity` and `tt.constancy` on an operation."""

from typing import TYPE_CHECKING

import numpy as np

from qfuse.lowering.triton.interpreter.program import Instruction
from qfuse.lowering.triton.interpreter.types import DTYPES
from qfuse.lowering.triton.interpreter.values import Value

if TYPE_CHECKING:
    from qfuse.lowering.triton.interpreter.machine import Machine


def check_hints(machine: "Machine", instruction: Instruction, value: Value) -> None:
    """Trap a value that is not what the operation promises of it: Triton would miscompile it.

    Contiguity and constancy hold for each aligned group of so many elements of an axis.
    Divisibility holds for every element that does not continue its predecessor by one.
    """
    of = instruction.result_types[0]
    unit = DTYPES[of.element].itemsize if of.kind == "pointer" else 1
    data = value.data.astype(np.int64)
    for name, numbers in instruction.hints.items():
        for axis, number in enumerate(numbers):
            at = axis + 1 if of.shape else 0
            wrong = np.zeros(data.shape, bool)
            if name == "tt.divisibility":
                wrong = data % number != 0
            if of.shape and number > 1:
                steps = np.diff(data, axis=at)
                if name == "tt.divisibility":
                    _later(wrong, at)[steps == unit] = False
                else:
                    expected = unit if name == "tt.contiguity" else 0
                    starts = (np.arange(1, data.shape[at]) % number) == 0
                    bad = np.moveaxis(steps != expected, at, -1)
                    bad[..., starts] = False
                    _later(wrong, at)[...] = np.moveaxis(bad, -1, at)
            if value.undefined is not None:
                wrong &= ~value.undefined
            if wrong.any():
                machine.trap_first(wrong, f"is not what {name} = {number} of axis {axis} promises")


def _later(array: np.ndarray, axis: int) -> np.ndarray:
    """A view of all but the first element of an axis."""
    return array[(slice(None),) * axis + (slice(1, None),)]
