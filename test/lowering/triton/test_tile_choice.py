"""The tiles that the model chooses: there are some for every shape, and none falls off a cliff."""

import itertools
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

import pytest
from gpu_kernels import lowered, matmul_text, plain, quantized

from qfuse.lowering.triton.gpu import GPUS, find_gpu
from qfuse.lowering.triton.problem import Problem
from qfuse.lowering.triton.tile_choice import by_model, candidates, choose, config_error
from qfuse.lowering.triton.tile_model import (
    OVERHEAD,
    SPEEDS,
    estimate,
    floor,
    registers_of,
    residents,
    shared_bytes,
)
from qfuse.lowering.triton.tile_table import Table, using
from qfuse.lowering.triton.tiles import Config

CACHE = Path(os.environ.get("QFUSE_CACHE_DIR", tempfile.gettempdir())) / "gpu"
SM_90 = find_gpu("cuda:sm_90")
FP8 = "f8E4M3FN"
ROWS = (1, 2, 16, 17, 40, 64, 65, 129, 257, 400, 513, 1025, 3000, 4097, 8192, 16385, 30000)

OF_BEST = 2.0
"""A choice serves a range of rows.  Within one, another may fill the last wave better, and K is
not split for an unlimited number of rows."""

OF_FLOOR = 13.0
"""What a few columns with a long K take: their slices are added by one program after the other."""

PER_ROWS = 2.0
"""From one number of rows to the next tested: the time by the rows grows by so much at most."""


def fp8(n: int, k: int, **changes: object) -> Problem:
    """A block-scaled product with a bf16 result on sm_90."""
    problem = Problem(
        n=n, k=k, parts=1, x=FP8, w=FP8, factor=FP8, depth=128, scaled=True, results=("bf16",),
        scheme="1x128,128x128,-", persistent=k % 16 == 0 and k > 128, adjacent=True, gemv=True,
    )  # fmt: skip
    return replace(problem, **changes)  # type: ignore[arg-type]


def glu(n: int, k: int) -> Problem:
    """Gate and up with a quantized result."""
    return fp8(n, k, parts=2, results=(FP8,), scheme="1x128,128x128,1x128", least_columns=128,
               gemv=False)  # fmt: skip


def bf16(n: int, k: int) -> Problem:
    return fp8(n, k, x="bf16", w="bf16", factor="bf16", depth=64, scaled=False, scheme="-,-,-")


def w8a16(n: int, k: int) -> Problem:
    return fp8(n, k, x="bf16", factor="bf16", depth=64, scheme="-,128x128,-", persistent=False)


def on(problem: Problem, target: str) -> Problem:
    """What it is on a GPU without FP8 products, or without warp specialization."""
    gpu = find_gpu(target)
    if problem.factor == FP8 and FP8 not in gpu.fp8_products:
        problem = replace(problem, factor="f16", depth=64)
    return replace(problem, persistent=problem.persistent and gpu.warp_specializes)


def tiles_for(problem: Problem, target: str, m: int) -> Config:
    with using(Table()):
        found = choose((problem,), find_gpu(target))
    config = next(configs[0] for _, last, configs in found if last is None or m <= last)
    return replace(config, edition=0)


@pytest.mark.parametrize(
    ("target", "kind"),
    [("cuda:sm_90", fp8), ("cuda:sm_90", glu), ("cuda:sm_90", bf16), ("cuda:sm_90", w8a16),
     ("cuda:sm_80", glu), ("cuda:sm_89", fp8), ("cuda:sm_100", fp8), ("hip:gfx942", fp8)],
)  # fmt: skip
def test_no_shape_falls_off_a_cliff(target: str, kind) -> None:
    """Against the best candidate for each number of rows, the floor, and the rows before."""
    gpu = find_gpu(target)
    quality = []
    for n, k in itertools.product((16, 130, 2112, 24576), (300, 2048, 28672)):
        problem = on(kind(n, k), target)
        before = None
        for m in ROWS:
            seconds = estimate(problem, tiles_for(problem, target, m), m, gpu).seconds
            best = min(estimate(problem, c, m, gpu).seconds for c in candidates(problem, gpu, m, m))
            assert seconds <= OF_BEST * best, (problem, m)
            assert seconds <= OF_FLOOR * (floor(problem, m, gpu).seconds + OVERHEAD), (problem, m)
            if before is not None:
                assert seconds / m <= PER_ROWS * before, (problem, m)
            before = seconds / m
            quality.append(seconds / best)
    assert geometric_mean(quality) < 1.08


@pytest.mark.parametrize("target", GPUS)
@pytest.mark.parametrize("kind", [fp8, glu, bf16, w8a16])
def test_choices_are_legal_and_serve_every_row(target: str, kind) -> None:
    gpu = find_gpu(target)
    for n, k in ((1, 128), (130, 300), (4096, 7168)):
        problem = on(kind(n, k), target)
        with using(Table()):
            found = choose((problem,), gpu)
        assert found[0][0] == 1 and found[-1][1] is None
        for (_, last, _), (first, _, _) in itertools.pairwise(found):
            assert last is not None and first == last + 1
        names = {}
        for _, last, (config,) in found:
            assert config_error(config, problem, gpu, last) is None
            assert names.setdefault(config.name, config) == config, "two kernels of one name"
            assert residents(problem, config, gpu) >= 1


def test_groups_of_one_kernel_have_the_same_ranges() -> None:
    problems = (fp8(4096, 7168), fp8(512, 7168, parts=2))
    with using(Table()):
        found = choose(problems, SM_90)
    assert all(len(configs) == 2 for _, _, configs in found)
    alone = [by_model(p, SM_90, 4097, 16384) for p in problems]
    assert alone[0] != alone[1], "or this test shows nothing"
    assert list(next(c for _, last, c in found if last is None or last >= 4097)) == alone


def test_neighbours_with_equal_tiles_are_one() -> None:
    with using(Table()):
        found = choose((fp8(24576, 7168),), SM_90)
    for (*_, before), (*_, after) in itertools.pairwise(found):
        assert before != after


def test_decode_keeps_memory_busy() -> None:
    """Few rows: bound by memory, enough programs, hardly more than the bytes take."""
    for n, k in ((4096, 7168), (7168, 16384), (24576, 7168), (2112, 7168)):
        problem = fp8(n, k)
        found = estimate(problem, tiles_for(problem, "cuda:sm_90", 16), 16, SM_90)
        assert found.programs >= 100
        assert found.seconds <= 1.15 * floor(problem, 16, SM_90).seconds + 2 * OVERHEAD


def test_one_row_of_plain_x_needs_no_tensor_cores() -> None:
    assert tiles_for(w8a16(7168, 2048), "cuda:sm_80", 1).gemv
    assert not tiles_for(w8a16(7168, 2048), "cuda:sm_80", 2).gemv


def test_large_products_take_the_widest_tile() -> None:
    """TRITON.md, section 4: 128 x 256, warp-specialized, from 1024 rows on."""
    for m in (1024, 4096, 100000):
        config = tiles_for(fp8(24576, 7168), "cuda:sm_90", m)
        assert (config.rows, config.columns, config.adjacent, config.persistent) == (128, 128, 2, 1)


def test_tiles_narrow_where_there_are_fewer_than_processors() -> None:
    problem = fp8(2112, 7168)
    config = tiles_for(problem, "cuda:sm_90", 128)
    found = estimate(problem, config, 128, SM_90)
    assert config.columns == 64 and config.slices > 1 and found.programs >= SM_90.processors - 1


PUBLISHED = [
    (Config(64, 128, 128, num_stages=3, band=32), 290, 830),
    (Config(128, 128, 128, num_warps=8, num_stages=4), 700, 950),
    (Config(128, 128, 128, persistent=True, num_stages=4), 1000, 1250),
    (Config(128, 128, 128, 2, persistent=True, num_stages=4), 1200, 1500),
]
"""TFLOP/s between what is published for 4096 x 24576 x 7168 or the like (SGLang's 290, DeepGEMM's
1066 to 1500) and the ceilings of TRITON.md 1.3."""


def test_the_model_agrees_with_what_is_published() -> None:
    problem, speeds = fp8(24576, 7168), []
    for config, least, most in PUBLISHED:
        seconds = estimate(problem, config, 4096, SM_90).seconds
        speeds.append(2 * problem.products(4096) / seconds / 1e12)
        assert least <= speeds[-1] <= most, config.name
    assert speeds == sorted(speeds)


def test_floors() -> None:
    """Bytes by bandwidth and operations by peak, on paper."""
    problem, speeds = fp8(4096, 7168), SPEEDS["sm_90"]
    few, many = floor(problem, 1, SM_90), floor(problem, 4096, SM_90)
    assert few.bound == "memory" and many.bound == "tensor cores"
    assert few.seconds == pytest.approx((4096 * 7168 + 7168 + 2 * 4096) / speeds.memory)
    assert many.seconds == pytest.approx(4096 * 4096 * 7168 / (4096 * 132 * speeds.clock))


def test_what_does_not_fit_is_no_candidate() -> None:
    for config in candidates(glu(4096, 7168), SM_90, 4097, None):
        assert config.columns >= 128
        assert shared_bytes(glu(4096, 7168), config, SM_90) <= SM_90.shared_bytes
    assert not any(c.swap or c.slices > 1 for c in candidates(fp8(4096, 7168), SM_90, 16385, None))
    least = list(candidates(replace(glu(4096, 7168), parts=9), SM_90, 1, 16))
    assert least, "there is always one"


def test_registers_and_shared_memory_are_those_of_machine_code() -> None:
    """What the model was fitted to: a tile of each kind as ptxas makes it."""
    pytest.importorskip("triton")
    from qfuse.lowering.triton.binary import compile_launch
    from qfuse.lowering.triton.sass import sass_report

    text = matmul_text(
        quantized(-1, 2048), quantized(4096, 2048, block=(128, 128)), [plain(-1, 4096)]
    )
    problem = fp8(4096, 2048)
    with using(Table()):
        kernel = lowered(text)
        found = choose((problem,), SM_90)
    pairs = list(zip(kernel.variants, found, strict=True))
    for variant, (first, _, (config,)) in pairs[::2]:
        assert variant.first_m == first
        (launch,) = variant.launches
        report = sass_report(compile_launch(launch, SM_90, CACHE))
        modelled = shared_bytes(problem, config, SM_90)
        assert report["shared_bytes"] <= modelled <= report["shared_bytes"] + 8192
        assert report["spill_bytes"] == 0
        if not config.persistent:  # setmaxnreg decides there
            assert abs(report["registers"] - registers_of(problem, config, SM_90)) <= 48
            assert abs(report["occupancy"] - residents(problem, config, SM_90)) <= 1
