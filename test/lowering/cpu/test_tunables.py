"""Tunables of products: none changes a bit, and what no loops can be built of is refused."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cpu_kernels import (
    TESTED_LEVELS,
    compiled,
    group_text,
    matmul_text,
    parsed,
    plain,
    run,
    same_bits,
)
from schemes import Operand, int4, plain_weight, plain_x, q4_k, quantized_x, simple

from qfuse.lowering.cpu.cache import kernel_key
from qfuse.lowering.cpu.tunables import DEFAULTS, SEARCHES, Tunables
from qfuse.lowering.cpu.weights import pack_experts

N, K, MOST = 150, 512, 34
ROWS = (1, 3, 8, 16, MOST)

Make = Callable[[int, int], Operand]

PRODUCTS: dict[str, tuple[Make, Make]] = {
    "fp8 blocks": (
        lambda n, k: simple(n, k, "f8E4M3FN", (128, 128)),
        lambda m, k: quantized_x(m, k, "f8E4M3FN", 128),
    ),
    "int8": (
        lambda n, k: simple(n, k, "i8", (1, 0)),
        lambda m, k: quantized_x(m, k, "i8", 0),
    ),
    "int4 with zeros": (
        lambda n, k: int4(n, k, 32, zeros=True),
        lambda m, k: plain_x(m, k, "bf16"),
    ),
    "q4_k": (q4_k, lambda m, k: quantized_x(m, k, "i8", 32, "f16", "q8_1")),
    "bf16": (lambda n, k: plain_weight(n, k, "bf16"), lambda m, k: plain_x(m, k, "bf16")),
}


def tried(level: str) -> Iterator[Tunables]:
    """All alternatives that autotuning starts from, and what differs in everything."""
    for search in SEARCHES[level]:
        for number in range(len(search.lists)):
            yield from search.alternatives(DEFAULTS[level], number)
    yield replace(
        DEFAULTS[level],
        direct_rows=(1, 2, 16),
        row_strips=2,
        direct_height=2,
        direct_sums=32,
        unrolled=64,
        prefetch_bytes=1 << 20,
        far_bytes=1 << 21,
        tile_rows=(2,),
        tile_strips=4,
        tile_sums=4,
        tile_fetches=not DEFAULTS[level].tile_fetches,
        chunk_rows=16,
        wide_part=0,
    )


def tried_of(name: str, level: str) -> list[Tunables]:
    """Two products try each alternative, and all of them what differs in everything.

    A loop that a choice breaks is built for every kind of product, so two of them show it, and
    its effect on the others is part of the last; with QFUSE_EXHAUSTIVE each tries all.
    """
    *single, everything = tried(level)
    place = list(PRODUCTS).index(name)
    if not os.environ.get("QFUSE_EXHAUSTIVE"):
        single = [t for i, t in enumerate(single) if (place - i) % len(PRODUCTS) in (0, 2)]
    return [*single, everything]


@pytest.mark.parametrize("level", TESTED_LEVELS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_no_choice_changes_a_bit(level: str, name: str) -> None:
    make_w, make_x = PRODUCTS[name]
    w, x = make_w(N, K), make_x(MOST, K)
    packed, result = w.packed(), plain(-1, N, dtype="f32")
    text = matmul_text(x.type, w.type, [result])

    def outputs(tuned: Tunables | None) -> list[torch.Tensor]:
        found = []
        for m in ROWS:
            out = run(text, level, [x.rows(m), packed], [result], m, threads=2, tuned=tuned)
            found += out
        return found

    wanted = outputs(None)
    assert all(bool(y.isfinite().all()) for y in wanted)
    for tuned in tried_of(name, level):
        for m, got, want in zip(ROWS, outputs(tuned), wanted, strict=True):
            assert same_bits(got, want), (tuned, m)


@pytest.mark.parametrize("level", TESTED_LEVELS)
def test_nor_by_the_weights_of_experts(level: str) -> None:
    make_w, make_x = PRODUCTS["fp8 blocks"]
    experts, x = [make_w(N, K), make_w(N, K)], make_x(MOST, K)
    codes, scale = (
        torch.stack(each) for each in zip(*(w.components for w in experts), strict=True)
    )
    packed = pack_experts(codes, scale, (128, 128))
    result, w = plain(-1, N, dtype="f32"), experts[0].type
    text = group_text(x.type, replace(w, shape=(2, *w.shape)), [result])
    for rows in ((1, MOST - 1), (6, 3), (0, 17)):
        m = sum(rows)
        indptr = torch.tensor([0, rows[0], m], dtype=torch.int32)
        arguments = [x.rows(m), packed, indptr]
        (wanted,) = run(text, level, arguments, [result], m, threads=2)
        for tuned in tried(level):
            (got,) = run(text, level, arguments, [result], m, threads=2, tuned=tuned)
            assert same_bits(got, wanted), (tuned, rows)


def test_a_kernel_is_known_by_its_choices() -> None:
    level = TESTED_LEVELS[-1]
    w, x = PRODUCTS["int8"][0](N, K), PRODUCTS["int8"][1](1, K)
    text = matmul_text(x.type, w.type, [plain(-1, N, dtype="f32")])
    with parsed(text) as kernel:
        keys = {kernel_key(kernel, level, tuned) for tuned in (None, *tried(level))}
    assert len(keys) == 1 + len(list(tried(level)))
    rows = [e.symbol for e in compiled(text, level, list(tried(level))[-1]).entries]
    assert rows == ["run1", "run2", "run16", "run_units", "run"]


def test_nothing_is_fetched_ahead_where_arithmetic_is_slow() -> None:
    fetches = {
        level: (t.prefetch_bytes > 0, t.far_bytes > 0, t.tile_fetches)
        for level, t in DEFAULTS.items()
    }
    some, none = (True,) * 3, (False,) * 3
    assert fetches == {"avx512": some, "avx2": some, "generic": none}


@pytest.mark.parametrize("level", DEFAULTS)
def test_to_data_and_back(level: str) -> None:
    data = json.loads(json.dumps(DEFAULTS[level].to_json()))
    assert Tunables.from_json(data) == DEFAULTS[level]
    for name, value in (("row_strips", "2"), ("tile_fetches", 1), ("direct_rows", [1, 2.0])):
        with pytest.raises(TypeError, match=name):
            Tunables.from_json(data | {name: value})
    del data["unrolled"]
    with pytest.raises(KeyError, match="unrolled"):
        Tunables.from_json(data)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"direct_rows": (2, 4)}, "no loop for one row"),
        ({"direct_rows": (1, 3)}, "not powers of two from 1"),
        ({"direct_rows": ()}, "not powers of two from 1"),
        ({"tile_rows": (2, 4)}, "not powers of two from 2"),
        ({"tile_rows": (4, 1)}, "not powers of two from 2"),
        ({"tile_strips": 3}, "strips divide no group"),
        ({"row_strips": 0}, "strips divide no group"),
        ({"direct_height": 3}, "rows at once are no power of two"),
        ({"direct_sums": 8}, "fewer accumulators"),
        ({"tile_strips": 2, "tile_sums": 1}, "fewer accumulators"),
        ({"chunk_rows": 4}, "a chunk has fewer rows"),
        ({"unrolled": 0}, "no slices in line"),
        ({"prefetch_bytes": -1}, "bytes less than none"),
        ({"far_bytes": -1}, "bytes less than none"),
    ],
)
def test_what_has_no_loops_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(DEFAULTS["avx512"], **change)
