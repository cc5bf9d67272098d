"""The interpreter of Triton kernels: whole GEMM kernels against f64, on ragged shapes."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_interpreter_gemms import (
    Problem,
    expert_gemm,
    persistent_gemm,
    pointer_gemm,
    split_gemm,
    up,
)

from qfuse.dialects.bindings import ir
from qfuse.lowering.triton.interpreter import Buffer, TensorMap, Trap, run

BF16_ROUNDING = 2.0**-8  # half a unit in the last of 8 bits
SILU_SLOPE = 1.1  # the largest derivative of silu
F32_STEPS = 8 * 2.0**-24  # roundings of exp, division and products of an epilogue


def close(actual, expected, error, rounding=BF16_ROUNDING):
    """Nothing differs by more than `error` before it is rounded once."""
    difference = np.abs(actual.astype(float) - expected)
    allowed = error + rounding * (np.abs(expected) + error)
    assert not np.isnan(difference).any()
    assert (difference <= allowed).all(), (difference / allowed).max()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(m=st.integers(1, 70), n=st.integers(1, 70), k=st.integers(1, 100))
def test_pointer_gemm(m, n, k):
    p = Problem.of(m, n, k, 32)
    c = Buffer((m, n), "bf16")
    args = [p.a, p.b, c, p.a_scale, p.b_scale, m]
    report = run(pointer_gemm(n, k, 32, 32), "kernel", args, up(m, 32) * up(n, 32))
    product, error = p.reference()
    silu = product * sigmoid(product)
    close(c.array, silu, SILU_SLOPE * error + F32_STEPS * np.abs(silu))
    assert (report.unwritten, report.warnings) == ({2: 0}, ())


def test_gemm_without_its_masks_is_trapped():
    text = pointer_gemm(48, 96, 32, 32)
    p = Problem.of(33, 48, 96, 32)
    args = [p.a, p.b, Buffer((33, 48), "bf16"), p.a_scale, p.b_scale]
    with pytest.raises(Trap, match="reads out of bounds: element 3168 of argument 0, which holds"):
        run(text, "kernel", [*args, 40], 4)  # says M = 40
    with pytest.raises(Trap, match="writes what program"):
        run(text.replace("arith.remsi", "arith.divsi"), "kernel", [*args, 33], 4)


def test_a_parsed_module_is_taken_too():
    p = Problem.of(5, 32, 32, 32)
    c = Buffer((5, 32), "bf16")
    with ir.Context() as context:
        context.allow_unregistered_dialects = True
        module = ir.Module.parse(persistent_gemm(32, 32, 64, 32))
        run(module, "kernel", [p.a, p.b, c, None, p.a_scale, p.b_scale, 5])
    close(c.array, *p.reference())


def test_gemm_of_the_usual_tile_size_is_fast():
    p = Problem.of(200, 300, 512, 128)
    c = Buffer((200, 300), "bf16")
    start = time.perf_counter()
    text = pointer_gemm(300, 512, 64, 128)
    run(text, "kernel", [p.a, p.b, c, p.a_scale, p.b_scale, 200], 4 * 5)
    assert time.perf_counter() - start < 2
    product, error = p.reference()
    silu = product * sigmoid(product)
    close(c.array, silu, SILU_SLOPE * error + F32_STEPS * np.abs(silu))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 150),
    n=st.integers(1, 20).map(lambda i: 8 * i),  # rows of c: multiples of 16 bytes
    k=st.integers(1, 10).map(lambda i: 16 * i),
    programs=st.integers(1, 7),
    maps=st.booleans(),
    old=st.booleans(),
)
def test_persistent_gemm_with_descriptors(m, n, k, programs, maps, old):
    p = Problem.of(m, n, k, 32)
    c = Buffer((m, n), "bf16")
    matrices = [p.a, p.b, c]
    if maps:
        boxes = ((32, 32), (32, 32), (32, 32))
        matrices = [TensorMap(x, box) for x, box in zip(matrices, boxes, strict=True)]
    text = persistent_gemm(n, k, 64, 32, maps=maps, old=old)
    report = run(text, "kernel", [*matrices, None, p.a_scale, p.b_scale, m], programs)
    close(c.array, *p.reference())
    assert report.unwritten == {2: 0}
    assert report.store_bytes == 2 * m * n


@pytest.mark.parametrize(("m", "n", "k"), [(1, 64, 32), (100, 192, 208), (130, 320, 48)])
def test_glu_and_its_quantization(m, n, k):
    p = Problem.of(m, n, k, 32)
    product, error = p.reference()
    (gate, up_), (gate_error, up_error) = (np.split(x, 2, axis=1) for x in (product, error))
    silu = gate * sigmoid(gate)
    expected = silu * up_
    bound = np.abs(up_) * SILU_SLOPE * gate_error + np.abs(silu) * up_error
    bound += SILU_SLOPE * gate_error * up_error + F32_STEPS * np.abs(expected)
    c = Buffer((m, n // 2), "bf16")
    args = [p.a, p.b, c, None, p.a_scale, p.b_scale, m]
    run(persistent_gemm(n, k, 64, 32, glu=True), "kernel", args, 3)
    close(c.array, expected, bound)

    codes, scales = Buffer((m, n // 2), "f8E4M3FN"), Buffer((n // 64, m), "f32")
    text = persistent_gemm(n, k, 64, 32, glu=True, quantize=True)
    report = run(text, "kernel", [p.a, p.b, codes, scales, p.a_scale, p.b_scale, m], 3)
    assert report.unwritten == {2: 0, 3: 0}
    largest = np.abs(expected).reshape(m, -1, 32).max(-1).T
    largest_bound = bound.reshape(m, -1, 32).max(-1).T
    close(scales.array, largest / 448, largest_bound / 448 + 1e-12, rounding=F32_STEPS)
    scale = np.repeat(scales.array.T, 32, axis=1).astype(float)
    # Half a unit in the last of 4 bits, or half of the smallest e4m3 number, 2^-9.
    close(codes.array.astype(float) * scale, expected, bound + scale * 2.0**-10, rounding=2.0**-4)


@pytest.mark.parametrize("parallel", [1, None])
@pytest.mark.parametrize(
    ("m", "n", "k", "splits"), [(1, 96, 256, 2), (13, 80, 208, 3), (40, 33, 96, 1)]
)
def test_split_k_with_reduction_by_the_last_program(m, n, k, splits, parallel):
    p = Problem.of(m, n, k, 32)
    grid = (up(n, 32), up(m, 16), splits)
    partial, c = Buffer((splits, m, n), "f32"), Buffer((m, n), "bf16")
    semaphores = np.zeros(grid[0] * grid[1], np.int32)
    args = [p.a, p.b, c, p.a_scale, p.b_scale, partial, semaphores, m]
    text = split_gemm(n, k, 16, 32, splits)
    order = np.random.default_rng(m).permutation(np.prod(grid))
    report = run(text, "kernel", args, grid, parallel=parallel, order=order)
    product, error = p.reference()
    close(c.array, product, error * (1 + splits / k))
    assert not semaphores.any()
    assert (report.unwritten, report.atomics) == ({2: 0, 5: 0}, np.prod(grid))
    if splits > 1:
        with pytest.raises(Trap, match="in the same launch, with no barrier"):
            run(text.replace('"gpu.barrier"() : () -> ()', ""), "kernel", args, grid)


@pytest.mark.parametrize("tile", [16, 64])
def test_grouped_gemm_of_experts(tile):
    counts, n, k = [37, 0, 90, 5], 64, 80
    rows, experts = sum(counts), len(counts)
    p = Problem.of(rows, experts * n, k, 32)
    tiles, start = [], 0
    for expert, count in enumerate(counts):
        end = start + count
        tiles += [(expert, row, end) for row in range(start, end, tile)]
        start = end
    tile_map = [np.array(column, np.int32) for column in zip(*tiles, strict=True)]
    c = Buffer((rows, n), "bf16")
    number = np.array([len(tiles)], np.int32)
    args = [p.a, p.b, c, p.a_scale, p.b_scale, *tile_map, number, rows]
    report = run(expert_gemm(experts, n, k, tile, 32), "kernel", args, 5)
    expert_of_row = np.repeat(np.arange(experts), counts)
    columns = expert_of_row[:, None] * n + np.arange(n)
    product, error = (np.take_along_axis(x, columns, axis=1) for x in p.reference())
    close(c.array, product, error)
    assert report.unwritten == {2: 0}
