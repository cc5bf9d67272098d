"""Damaged metadata of kernels, cache entries that are whole but not ours, and odd targets."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpu_kernels import kernel_text, lowered, plain

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cache_file import read_cached, write_cached
from qfuse.lowering.triton import binary
from qfuse.lowering.triton.gpu import GPUS, find_gpu
from qfuse.lowering.triton.gpu_kernel import GpuKernel, GpuLaunch, GpuVariant
from qfuse.lowering.triton.kernel import Grid, Parameter

X, S, Y = Parameter("operand"), Parameter("operand", 0, "scale"), Parameter("result")
WORK = Parameter("scratch"), Parameter("counter")


def launch(name: str, grid: Grid) -> GpuLaunch:
    return GpuLaunch(name, (X, S, Y, *WORK), grid, 4, 1024, 128, b"\x7fELF" + name.encode())


KERNEL = GpuKernel(
    "k",
    "cuda:sm_90",
    (X, S, Y),
    (
        GpuVariant(1, 16, (launch("few", Grid(16, 2, y=3)),), 12, 8),
        GpuVariant(17, None, (launch("many", Grid(128, 2, at_most=132)), launch("then", Grid(1)))),
    ),
)
METADATA = json.loads(json.dumps(KERNEL.metadata()))
WRONG = (None, -1, 0, True, 1.5, "x", [], {}, [1], 2**40)


def places(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there are values in `data`."""
    keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in keys:
        yield (*at, key)
        yield from places(data[key], (*at, key))


def changed(at: tuple[Any, ...], *value: Any) -> Any:
    """METADATA with another value in a place, or none there."""
    data = copy.deepcopy(METADATA)
    inner = data
    for key in at[:-1]:
        inner = inner[key]
    if value:
        inner[at[-1]] = value[0]
    else:
        del inner[at[-1]]
    return data


def is_possible(at: tuple[Any, ...], value: Any) -> bool:
    """Whether some kernel has this value there; sizes cannot be told from others."""
    field = at[-1]
    if field in ("name", "target"):
        return isinstance(value, str)
    if field in ("shared_bytes", "program_scratch", "scratch_per_row", "counter_bytes"):
        return type(value) is int and value >= 0
    if field in ("rows", "per_block", "y", "groups", "times"):
        return value == 2**40
    if field == "at_most":
        return value in (None, 2**40)
    return field == "parameters" and len(at) > 1 and value in ([], {})  # takes no pointers


WITH_DEFAULTS = (
    *("per_block", "at_most", "y", "groups", "times"),
    *("scratch_per_row", "counter_bytes", "index", "part"),
)


@pytest.mark.parametrize("at", list(places(METADATA)), ids=lambda at: ".".join(map(str, at)))
def test_damaged_metadata_is_noticed(at: tuple[Any, ...]) -> None:
    """Started as it says, the kernel would get wrong memory, a wrong grid, or fail much later."""
    damaged = [changed(at, v) for v in WRONG if not is_possible(at, v)]
    if at[-1] not in WITH_DEFAULTS and not isinstance(at[-1], int):
        damaged.append(changed(at))  # the others have defaults, or shorten a list
    same = [data for data in damaged if data == METADATA]
    for data in damaged:
        if data in same:
            continue
        with pytest.raises((ValueError, TypeError, KeyError)):
            GpuKernel.from_metadata(data, KERNEL.code)
    assert len(damaged) > len(same)


def test_sound_metadata_is_read() -> None:
    assert GpuKernel.from_metadata(METADATA, KERNEL.code) == KERNEL


@pytest.mark.parametrize("code", [KERNEL.code[:-1], KERNEL.code + b"!", b""])
def test_code_of_another_length(code: bytes) -> None:
    with pytest.raises(ValueError, match="bytes of machine code where"):
        GpuKernel.from_metadata(METADATA, code)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda v: v[::-1], "a variant for M >= 17 where 1 is expected"),
        (lambda v: v[:1], "no variant for any larger M"),
        (lambda v: (v[0], replace(v[1], first_m=18)), "a variant for M >= 18 where 17 is expected"),
        (lambda v: (*v, v[1]), "a variant for M >= 17 where None is expected"),
        (lambda v: (replace(v[0], last_m=0), v[1]), "a variant for M 1..0"),
        (lambda v: (replace(v[0], launches=()), v[1]), "no launch for M 1..16"),
        (lambda v: (), "no variant for any larger M"),
    ],
)
def test_variants_serve_every_m(edit, why: str) -> None:
    kernel = replace(KERNEL, variants=edit(KERNEL.variants))
    with pytest.raises(ValueError, match=why):
        GpuKernel.from_metadata(kernel.metadata(), kernel.code)


def test_a_launch_takes_what_the_caller_passes() -> None:
    foreign = replace(KERNEL, parameters=(X, Y))
    with pytest.raises(ValueError, match="a launch that takes"):
        GpuKernel.from_metadata(foreign.metadata(), foreign.code)


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: [],
        lambda header: {},
        lambda header: {**header, "stages": "cubin"},
        lambda header: {**header, "stages": header["stages"][:-1]},
        lambda header: {**header, "metadata": {"num_warps": 4}},
        lambda header: {**header, "metadata": 4},
        lambda header: {k: v for k, v in header.items() if k != "name"},
    ],
    ids=range(7),
)
def test_a_whole_entry_that_is_not_ours_is_made_again(edit, tmp_path: Path) -> None:
    """Its digest is right, its content is of some other program or version."""
    pytest.importorskip("triton")
    row, gpu = plain(-1, 64), find_gpu("hip:gfx942")
    relu = lowered(kernel_text("relu", [row], [row]), str(gpu)).variants[0].launches[0]
    made = binary.compile_launch(relu, gpu, tmp_path)
    (path,) = tmp_path.iterdir()
    entry = read_cached(path)
    assert entry is not None
    write_cached(path, edit(entry[0]), entry[1])
    assert binary.compile_launch(relu, gpu, tmp_path) == made
    assert read_cached(path) == entry


@pytest.mark.parametrize(
    "target",
    ["", ":", "cuda", "cuda:", "cuda:90", "sm_90", "CUDA:SM_90", "cuda:sm_90a", "cuda:gfx942",
     "hip:sm_90", "rocm:gfx942", "cuda:sm_90 ", "cuda:sm_90\n", "cuda:sm_75", "hip:gfx90a"],
)  # fmt: skip
def test_targets_that_are_none(target: str) -> None:
    with pytest.raises(QfuseError) as caught:
        find_gpu(target)
    text = str(caught.value)
    assert "unknown GPU target" in text and "\n" not in text
    near = text.split("the nearest supported one is '")[1].split("'")[0]
    assert near in GPUS
