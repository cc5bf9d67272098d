"""`route` computes what the contract says and what the kernel of `qfuse.route` computes."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_cases import choices, rows_of

from qfuse.compiler.options import CompileOptions
from qfuse.compiler.routing import check_indptr, experts_of_rows, route
from qfuse.dialects import registry
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.cache import compile_cached
from qfuse.lowering.cpu.launcher import LoadedKernel

EXPERTS = 5


@settings(deadline=None, max_examples=60)
@given(choices(EXPERTS))
def test_as_the_contract_says(ids: torch.Tensor) -> None:
    indptr, tokens, slots = route(ids, EXPERTS)
    assert {t.dtype for t in (indptr, tokens, slots)} == {torch.int32}
    rows = rows_of(ids, EXPERTS)
    ends = [0] + [sum(e <= of for e, _, _ in rows) for of in range(EXPERTS)]
    assert indptr.tolist() == ends
    assert tokens.shape == slots.shape == ids.shape
    assert tokens.flatten().tolist() == [t for _, t, _ in rows] + [0] * (ids.numel() - len(rows))
    wanted = torch.full_like(ids, -1)
    for row, (_, t, j) in enumerate(rows):
        wanted[t, j] = row
    assert slots.tolist() == wanted.tolist()
    check_indptr(indptr, ids.numel())


def kernel_of(dtype: str, k: int, experts: int, shared: bool) -> LoadedKernel:
    rows, indptr = f"tensor<?x{k + shared}xi32>", f"tensor<{experts + shared + 1}xi32>"
    attributes = f"num_experts = {experts} : i64" + ", shared = 1 : i64" * shared
    ids, results = f"tensor<?x{k}x{dtype}>", f"({rows}, {rows}, {indptr})"
    text = f"""func.func @route(%ids: {ids}) -> {results} {{
      %slots, %tokens, %indptr = "qfuse.route"(%ids) {{{attributes}}}
        : ({ids}) -> {results}
      return %slots, %tokens, %indptr : {rows}, {rows}, {indptr}
    }}"""
    options = CompileOptions.make("cpu")
    with ir.Context(), ir.Location.unknown():
        registry.load_all()
        module = ir.Module.parse(text)
        function = next(iter(module.body.operations))
        return LoadedKernel(compile_cached(function, options.cache_dir, level=options.level))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("dtype", "k", "experts"), [("i64", 3, 5), ("i32", 8, 128)])
def test_as_the_kernel_computes(dtype: str, k: int, experts: int, shared: bool) -> None:
    kernel = kernel_of(dtype, k, experts, shared)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(-1, experts + 2, (1 + 7 * seed, k), generator=generator)
        ids = ids.to({"i64": torch.int64, "i32": torch.int32}[dtype])
        slots, tokens = torch.empty(2, len(ids), k + shared, dtype=torch.int32)
        indptr = torch.empty(experts + shared + 1, dtype=torch.int32)
        pointers = [t.data_ptr() for t in (ids, slots, tokens, indptr)]
        kernel.bind(pointers, len(ids), 1)()
        made = route(ids, experts, shared=shared)
        assert torch.equal(made.indptr, indptr)
        assert torch.equal(made.tokens, tokens)
        assert torch.equal(made.slots, slots)


def test_no_tokens() -> None:
    indptr, tokens, slots = route(torch.empty(0, 8, dtype=torch.int32), 3)
    assert indptr.tolist() == [0] * 4 and tokens.shape == slots.shape == (0, 8)


def test_many_tokens() -> None:
    """Equal ids stay in order also where a sort need not keep it."""
    ids = torch.randint(0, 512, (4096, 8), generator=torch.manual_seed(0))
    indptr, tokens, slots = route(ids, 512)
    assert torch.equal(indptr.diff().long(), torch.bincount(ids.flatten(), minlength=512))
    assert torch.equal(slots.flatten().long().sort().values, torch.arange(4096 * 8))
    for begin, end in pairwise(indptr.tolist()):
        assert bool((tokens.flatten()[begin:end].diff() >= 0).all())
    assert torch.equal(
        tokens.flatten()[slots.long()], torch.arange(4096).int()[:, None].expand(-1, 8)
    )


def test_strided_ids() -> None:
    ids = torch.tensor([[0, 2], [1, 1], [2, 0]])
    for made, wanted in zip(route(ids.t(), 3), route(ids.t().contiguous(), 3), strict=True):
        assert torch.equal(made, wanted)


def test_it_waits_for_nothing_and_is_traced_whole() -> None:
    """On meta there are no values to wait for."""
    for made in route(torch.empty(4, 2, dtype=torch.int64, device="meta"), 7):
        assert made.is_meta and made.dtype == torch.int32
    compiled = torch.compile(route, backend="eager", fullgraph=True, dynamic=True)
    for t in (3, 5):
        ids = torch.randint(-1, 4, (t, 2), generator=torch.manual_seed(t))
        for made, wanted in zip(compiled(ids, 4), route(ids, 4), strict=True):
            assert torch.equal(made, wanted)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.just(0) | st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 4))
def test_experts_of_rows(counts: list[int], more: int) -> None:
    indptr = torch.tensor([0, *counts]).cumsum(0).int()
    expert, offset = experts_of_rows(indptr, sum(counts) + more)
    assert (
        expert.tolist()
        == [e for e, n in enumerate(counts) for _ in range(n)] + [len(counts)] * more
    )
    assert offset.tolist() == [i for n in counts for i in range(n)] + list(range(more))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no tensor": (
        lambda: route([[1]], 4),  # type: ignore[arg-type]
        "route: ids is a list, not a tensor; expected int32 or int64 [T, k]",
    ),
    "ids of floats": (lambda: route(torch.zeros(2, 2), 4), "route: ids is float32 [2, 2]"),
    "ids of bytes": (
        lambda: route(torch.zeros(2, 2, dtype=torch.uint8), 4),
        "route: ids is uint8 [2, 2]; expected int32 or int64 [T, k]",
    ),
    "ids 1-D": (lambda: route(torch.zeros(2).int(), 4), "route: ids is int32 [2]; expected"),
    "no experts": (
        lambda: route(torch.zeros(2, 2).int(), 0),
        "route: num_experts is 0; expected 1 or more",
    ),
    "too many rows": (
        lambda: route(torch.empty(2**28, 8, dtype=torch.int32, device="meta"), 4),
        "route: ids are 2147483648; rows are counted in int32",
    ),
    "indptr int64": (
        lambda: check_indptr(torch.tensor([0, 2]), 2),
        "indptr is int64 [2]; expected int32 [E + 1]",
    ),
    "indptr of no expert": (
        lambda: check_indptr(torch.zeros(1).int(), 0),
        "indptr: the number of experts is 0; expected 1 or more",
    ),
    "indptr 2-D": (lambda: check_indptr(torch.zeros(2, 2).int(), 0), "indptr is int32 [2, 2]"),
    "not from 0": (
        lambda: check_indptr(torch.tensor([2, 2]).int(), 2),
        "indptr[0] is 2; the rows of the first expert begin at 0",
    ),
    "not monotone": (
        lambda: check_indptr(torch.tensor([0, 2, 1, 3]).int(), 3),
        "indptr[2] is 1, less than indptr[1] = 2; an expert has no fewer than 0 rows",
    ),
    "beyond": (
        lambda: check_indptr(torch.tensor([0, 2, 4]).int(), 3),
        "indptr[2] is 4; it is at most the number of rows, 3",
    ),
    "not whole": (
        lambda: check_indptr(torch.tensor([0, 2, 2]).int(), 3, whole=True),
        "indptr[2] is 2; it must be the number of rows, 3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(QfuseError) as caught:
        call()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_rows_that_are_nobodys_are_legal() -> None:
    check_indptr(torch.tensor([0, 2, 2]).int(), 3)
