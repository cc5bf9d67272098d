"""Each convention is read as its own kernels read it, and comes back as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_cases import choices, rows_of

from qfuse.compiler import routing as routing_module
from qfuse.compiler import routing_adapters as adapters
from qfuse.compiler.routing import Routing, check_indptr, route
from qfuse.dialects.errors import QfuseError

EXPERTS = 5
BLOCKS = st.sampled_from([1, 2, 4, 16])

any_routing = settings(deadline=None, max_examples=40)


def same(a: Routing, b: Routing) -> bool:
    return all(map(torch.equal, a, b)) and all(
        x.dtype == y.dtype for x, y in zip(a, b, strict=True)
    )


def nobodys_as(ids: torch.Tensor, value: int) -> torch.Tensor:
    return torch.where((ids >= 0) & (ids < EXPERTS), ids, value)


def experts(indptr: torch.Tensor) -> list[int]:
    """The expert of each row."""
    return [e for e, n in enumerate(indptr.diff().tolist()) for _ in range(n)]


@any_routing
@given(choices(EXPERTS), BLOCKS)
def test_mlc_triton(ids: torch.Tensor, block_m: int) -> None:
    """As the kernel walks: each block finds its rows by its number and those of its expert."""
    indptr, rows = route(ids, EXPERTS).indptr, ids.numel()
    expert_ids = adapters.to_mlc_triton(indptr, rows, block_m)
    assert expert_ids.dtype == torch.int32
    assert len(expert_ids) == -(-rows // block_m) + EXPERTS
    of_rows: list[list[int]] = [[] for _ in range(rows)]
    ends = indptr.tolist()
    for block, e in enumerate(expert_ids.tolist()):
        if e != -1:
            start = -(-ends[e] // block_m) + e
            first = ends[e] + (block - start) * block_m
            for row in range(first, min(first + block_m, ends[e + 1])):
                of_rows[row].append(e)
    assert of_rows == [[e] for e in experts(indptr)] + [[]] * (rows - ends[-1])
    back = adapters.from_mlc_triton(indptr, expert_ids[: -(-ends[-1] // block_m) + EXPERTS],
                                    ends[-1], block_m)  # fmt: skip
    assert torch.equal(back, indptr)


@any_routing
@given(choices(EXPERTS))
def test_ends_of_experts(ids: torch.Tensor) -> None:
    indptr = route(ids, EXPERTS).indptr
    cutlass, offs = adapters.to_mlc_cutlass(indptr), adapters.to_torch_offs(indptr)
    assert cutlass.dtype == torch.int64 and offs.dtype == torch.int32
    assert cutlass.tolist() == offs.tolist() == indptr.tolist()[1:]
    rows = ids.numel()
    for back in (
        adapters.from_mlc_cutlass(cutlass, int(indptr[-1])),
        adapters.from_torch_offs(offs, rows),
    ):
        assert torch.equal(back, indptr) and back.dtype == torch.int32


def test_torch_multiplies_by_offs() -> None:
    """The peer itself, on bf16."""
    generator = torch.manual_seed(0)
    x = torch.randn(9, 32, generator=generator).bfloat16()
    weight = torch.randn(3, 16, 32, generator=generator).bfloat16()
    indptr = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    offs = adapters.to_torch_offs(indptr)
    y = torch.nn.functional.grouped_mm(x, weight.transpose(1, 2), offs=offs)
    wanted = torch.stack([r @ weight[e].T for r, e in zip(x, experts(indptr), strict=True)])
    torch.testing.assert_close(y, wanted)


def written_by_sglang(s: adapters.SglangRouting, block_m: int, n: int) -> list[list[int]]:
    """Which expert's product each choice gets, -1 for zeros, as the kernel walks its blocks."""
    of_choices: list[list[int]] = [[] for _ in range(n)]
    for block in range(int(s.num_tokens_post_padded) // block_m):
        for choice in s.sorted_token_ids[block * block_m : (block + 1) * block_m].tolist():
            if choice < n:
                of_choices[choice].append(int(s.expert_ids[block]))
    return of_choices


@any_routing
@given(choices(EXPERTS), BLOCKS)
def test_sglang(ids: torch.Tensor, block_m: int) -> None:
    routing, n = route(ids, EXPERTS), ids.numel()
    s = adapters.to_sglang(routing, block_m)
    assert all(t.dtype == torch.int32 for t in s)
    assert len(s.sorted_token_ids) == len(s.expert_ids) * block_m
    assert int(s.num_tokens_post_padded) <= len(s.sorted_token_ids)
    wanted = [[e] for e in nobodys_as(ids, -1).flatten().tolist()]
    assert written_by_sglang(s, block_m, n) == wanted
    assert same(adapters.from_sglang(*s, ids.shape, EXPERTS, block_m), routing)


def test_sglang_example() -> None:
    """From the documentation of `moe_align_block_size`."""
    ids = torch.tensor([[2, 3, 4], [1, 2, 4], [1, 3, 4], [1, 2, 3]])
    s = adapters.to_sglang(route(ids, 5), 4)
    count = int(s.num_tokens_post_padded)
    wanted = [3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12]
    assert s.sorted_token_ids[:count].tolist() == wanted
    assert s.expert_ids[: count // 4].tolist() == [1, 2, 3, 4]
    assert (s.sorted_token_ids[count:] == 12).all() and (s.expert_ids[count // 4 :] == -1).all()


def test_what_sglang_leaves_undefined_is_not_read() -> None:
    """Beyond what counts; choices in another order, or not there, as where ids were filtered."""
    routing = adapters.from_sglang(
        torch.tensor([3, 0, 9, 4, 2, -7, 5, 5], dtype=torch.int32),
        torch.tensor([1, 0, 77, -9], dtype=torch.int32),
        torch.tensor([4], dtype=torch.int32),
        (3, 2),
        2,
        2,
    )
    # choice 9 is padding; 1, 2 and 5 are not there
    assert same(routing, route(torch.tensor([[1, -1], [-1, 1], [0, -1]]), 2))


@any_routing
@given(choices(EXPERTS), BLOCKS)
def test_deepgemm_contiguous(ids: torch.Tensor, alignment: int) -> None:
    """As the kernel walks: the first row of each block says whose all of it is."""
    indptr, rows = route(ids, EXPERTS).indptr, ids.numel()
    m_indices, (held, places) = adapters.to_deepgemm_contiguous(indptr, rows, alignment)
    assert m_indices.dtype == held.dtype == places.dtype == torch.int32
    assert len(m_indices) == len(held) and len(m_indices) % alignment == 0
    of_rows: list[list[int]] = [[] for _ in range(rows)]
    for first in range(0, len(m_indices), alignment):
        e = int(m_indices[first])
        for place in range(first, first + alignment):
            row = int(held[place])
            assert int(m_indices[place]) == (e if row >= 0 else -1)
            if e >= 0 and row >= 0:
                of_rows[row].append(e)
                assert int(places[row]) == place
    known = experts(indptr)
    assert of_rows == [[e] for e in known] + [[]] * (rows - len(known))
    assert (places[len(known) :] == -1).all()
    back = adapters.from_deepgemm_contiguous(m_indices, EXPERTS, alignment)
    assert torch.equal(back.indptr, indptr)
    assert torch.equal(back.slots.flatten(), held)
    assert torch.equal(back.tokens.flatten()[: len(known)], places[: len(known)])


@any_routing
@given(choices(EXPERTS), st.integers(0, 3))
def test_deepgemm_masked(ids: torch.Tensor, more: int) -> None:
    indptr, rows = route(ids, EXPERTS).indptr, ids.numel()
    max_m = max(1, int(indptr.diff().max())) + more
    masked_m, (held, places) = adapters.to_deepgemm_masked(indptr, rows, max_m)
    assert masked_m.dtype == held.dtype == places.dtype == torch.int32
    assert masked_m.tolist() == indptr.diff().tolist()
    known = experts(indptr)
    wanted = torch.full((EXPERTS, max_m), -1)
    for row, e in enumerate(known):
        wanted[e, row - int(indptr[e])] = row
    assert held.view(EXPERTS, max_m).tolist() == wanted.tolist()
    assert held[places[: len(known)].long()].tolist() == list(range(len(known)))
    assert (places[len(known) :] == -1).all()
    back = adapters.from_deepgemm_masked(masked_m, max_m)
    assert torch.equal(back.indptr, indptr)
    assert torch.equal(back.slots.flatten(), held)
    assert torch.equal(back.tokens.flatten()[: len(known)], places[: len(known)])


def test_rows_are_laid_out_and_taken_back() -> None:
    ids = torch.tensor([[0, 9], [3, 0], [-1, 3], [1, 3]])
    indptr, rows = route(ids, 4).indptr, ids.numel()
    x = torch.arange(8.0)[:, None] + 1
    for places in (
        adapters.to_deepgemm_contiguous(indptr, rows, 4)[1],
        adapters.to_deepgemm_masked(indptr, rows, 5)[1],
    ):
        padded = x[places.rows.clamp(min=0)]
        taken = padded[places.places.clamp(min=0)]
        known = int(indptr[-1])
        assert known == 6 and torch.equal(taken[:known], x[:known])


@any_routing
@given(choices(EXPERTS))
def test_huggingface(ids: torch.Tensor) -> None:
    routing = route(ids, EXPERTS)
    index = adapters.to_huggingface(routing)
    assert index.dtype == torch.int64 and torch.equal(index, nobodys_as(ids, EXPERTS))
    assert same(adapters.from_huggingface(index, EXPERTS), routing)
    assert same(adapters.from_huggingface(index.where(index < EXPERTS, 99), EXPERTS), routing)


@any_routing
@given(choices(EXPERTS), BLOCKS)
def test_from_one_convention_to_the_others(ids: torch.Tensor, block: int) -> None:
    """The rows of padded matrices are rows of tokens with one choice."""
    routing = route(ids, EXPERTS)
    s = adapters.to_sglang(adapters.from_huggingface(nobodys_as(ids, EXPERTS), EXPERTS), block)
    again = adapters.from_sglang(*s, ids.shape, EXPERTS, block)
    assert torch.equal(adapters.to_huggingface(again), nobodys_as(ids, EXPERTS))
    m_indices, places = adapters.to_deepgemm_contiguous(again.indptr, ids.numel(), block)
    padded = adapters.from_deepgemm_contiguous(m_indices, EXPERTS, block)
    assert torch.equal(
        adapters.from_torch_offs(adapters.to_torch_offs(padded.indptr), len(m_indices)),
        routing.indptr,
    )
    assert rows_of(padded.tokens.new_tensor(m_indices.tolist())[:, None], EXPERTS) == [
        (e, int(places.places[row]), 0) for row, e in enumerate(experts(routing.indptr))
    ]


def test_they_wait_for_nothing() -> None:
    """On meta there are no values to wait for; shapes are known all the same."""
    routing = route(torch.empty(6, 2, dtype=torch.int64, device="meta"), 4)
    s = adapters.to_sglang(routing, 4)
    contiguous, _ = adapters.to_deepgemm_contiguous(routing.indptr, 12, 4)
    masked, _ = adapters.to_deepgemm_masked(routing.indptr, 12, 3)
    expert_ids = adapters.to_mlc_triton(routing.indptr, 12, 4)
    for made in (
        adapters.from_sglang(*s, (6, 2), 4, 4),
        adapters.from_deepgemm_contiguous(contiguous, 4, 4),
        adapters.from_deepgemm_masked(masked, 3),
        adapters.from_huggingface(adapters.to_huggingface(routing), 4),
        [adapters.from_mlc_triton(routing.indptr, expert_ids, 12, 4)],
        [adapters.from_mlc_cutlass(adapters.to_mlc_cutlass(routing.indptr), 12)],
        [adapters.from_torch_offs(adapters.to_torch_offs(routing.indptr), 12)],
    ):
        assert all(t.is_meta for t in made) and made[0].shape == (5,)


def i32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


SGLANG = (i32(0, 4, 1, 2, 3, 4), i32(0, 1, 0), i32(6), (2, 2), 2, 2)


def sglang(**changes: Any) -> Callable[[], Any]:
    names = ("sorted_token_ids", "expert_ids", "num_tokens_post_padded", "shape", "num_experts",
             "block_m")  # fmt: skip
    return lambda: adapters.from_sglang(**{**dict(zip(names, SGLANG, strict=True)), **changes})


INDPTR = i32(0, 2, 5)

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "blocks of 0 rows": (
        lambda: adapters.to_mlc_triton(INDPTR, 5, 0),
        "to_mlc_triton: block_m is 0; expected 1 or more",
    ),
    "indptr beyond": (
        lambda: adapters.to_mlc_triton(INDPTR, 4, 2),
        "indptr[2] is 5; it is at most the number of rows, 4",
    ),
    "MLC's of fewer rows": (
        lambda: adapters.from_mlc_triton(INDPTR, i32(0, -1, 1, 1, -1), 6, 2),
        "indptr[2] is 5; it must be the number of rows, 6",
    ),
    "MLC's blocks too few": (
        lambda: adapters.from_mlc_triton(INDPTR, i32(0, 1, 1), 5, 2),
        "from_mlc_triton: expert_ids is int32 [3]; expected int32 [5]",
    ),
    "MLC's blocks of others": (
        lambda: adapters.from_mlc_triton(INDPTR, i32(0, 0, 1, 1, -1), 5, 2),
        "from_mlc_triton: expert_ids[1] is 0; by indptr, with blocks of 2 rows, it is -1",
    ),
    "ends int32": (
        lambda: adapters.from_mlc_cutlass(i32(2, 5), 5),
        "from_mlc_cutlass: ends is int32 [2]; expected int64 [E]",
    ),
    "ends int64": (
        lambda: adapters.from_torch_offs(torch.tensor([2, 5]), 5),
        "from_torch_offs: ends is int64 [2]; expected int32 [E]",
    ),
    "ends of no expert": (
        lambda: adapters.from_torch_offs(i32(), 0),
        "from_torch_offs: the number of experts is 0",
    ),
    "ends beyond int32": (
        lambda: adapters.from_mlc_cutlass(torch.tensor([2, 2**32 + 5]), 5),
        "from_mlc_cutlass: ends lie within 0..2147483647; found 2..4294967301",
    ),
    "ends not monotone": (
        lambda: adapters.from_torch_offs(i32(4, 2), 5),
        "from_torch_offs: indptr[2] is 2, less than indptr[1] = 4; an expert has no fewer than 0 "
        "rows, where indptr is 0 and then these ends",
    ),
    "starts for ends": (
        lambda: adapters.from_mlc_cutlass(torch.tensor([0, 2]), 5),
        "from_mlc_cutlass: indptr[2] is 2; it must be the number of rows, 5",
    ),
    "sglang's type": (
        sglang(sorted_token_ids=torch.tensor([0, 1, 2, 3])),
        "from_sglang: sorted_token_ids is int64 [4]; expected int32 [padded]",
    ),
    "sglang's count 0-D": (
        sglang(num_tokens_post_padded=torch.tensor(6, dtype=torch.int32)),
        "from_sglang: num_tokens_post_padded is int32 []; expected int32 [1]",
    ),
    "sglang's count not whole": (
        sglang(num_tokens_post_padded=i32(5)),
        "from_sglang: num_tokens_post_padded is 5; expected whole blocks of 2 within the 6 ",
    ),
    "sglang's count beyond": (
        sglang(num_tokens_post_padded=i32(8)),
        "from_sglang: num_tokens_post_padded is 8; expected whole blocks of 2 within the 6 ",
    ),
    "sglang's blocks too few": (
        sglang(expert_ids=i32(0, 1)),
        "from_sglang: expert_ids has 2 blocks; 6 sorted_token_ids in blocks of 2 have 3",
    ),
    "sglang's choice negative": (
        sglang(sorted_token_ids=i32(0, -1, 1, 2, 3, 4)),
        "from_sglang: sorted_token_ids has -1; expected choices from 0 on, and 4 for padding",
    ),
    "sglang's choice twice": (
        sglang(sorted_token_ids=i32(0, 4, 1, 2, 1, 4)),
        "from_sglang: sorted_token_ids has choice 1 more than once",
    ),
    "sglang's expert": (
        sglang(expert_ids=i32(0, 2, 0)),
        "from_sglang: expert_ids lie within -1..1; found 0..2",
    ),
    "sglang's experts 0": (
        sglang(num_experts=0),
        "from_sglang: num_experts is 0; expected 1 or more",
    ),
    "slots 1-D": (
        lambda: adapters.to_sglang(Routing(INDPTR, i32(0), i32(0)), 4),
        "to_sglang: slots is int32 [1]; expected int32 [T, k]",
    ),
    "m_indices not aligned": (
        lambda: adapters.from_deepgemm_contiguous(i32(0, 0, 1), 2, 2),
        "from_deepgemm_contiguous: m_indices are 3; expected a multiple of 2",
    ),
    "m_indices of two experts": (
        lambda: adapters.from_deepgemm_contiguous(i32(0, -1, 0, 1), 2, 2),
        "from_deepgemm_contiguous: m_indices[3] is 1, but its block of 2 rows begins with 0, which "
        "goes for all of them",
    ),
    "m_indices behind padding": (
        lambda: adapters.from_deepgemm_contiguous(i32(-1, 1), 2, 2),
        "from_deepgemm_contiguous: m_indices[1] is 1, but its block of 2 rows begins with -1",
    ),
    "m_indices of no expert": (
        lambda: adapters.from_deepgemm_contiguous(i32(0, 2), 2, 1),
        "from_deepgemm_contiguous: m_indices lie within -1..1; found 0..2",
    ),
    "max_m too small": (
        lambda: adapters.to_deepgemm_masked(INDPTR, 5, 2),
        "to_deepgemm_masked: expert 1 has 3 rows; max_m is 2",
    ),
    "too many places": (
        lambda: adapters.to_deepgemm_masked(INDPTR, 5, 2**30),
        "to_deepgemm_masked: 2 experts of max_m = 1073741824 rows are more than 2147483647",
    ),
    "masked_m beyond": (
        lambda: adapters.from_deepgemm_masked(i32(1, 4), 3),
        "from_deepgemm_masked: masked_m lie within 0..3 = max_m; found 1..4",
    ),
    "masked_m negative": (
        lambda: adapters.from_deepgemm_masked(i32(1, -1), 3),
        "from_deepgemm_masked: masked_m lie within 0..3 = max_m; found -1..1",
    ),
    "huggingface's -1": (
        lambda: adapters.from_huggingface(torch.tensor([[0, -1]]), 2),
        "from_huggingface: top_k_index has -1; there, no expert is an id from 2 on",
    ),
    "huggingface's type": (
        lambda: adapters.from_huggingface(i32(0, 1)[None], 2),
        "from_huggingface: top_k_index is int32 [1, 2]; expected int64 [T, k]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(QfuseError) as caught:
        call()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def values(low: int, high: int, least: int = 0, most: int = 12) -> st.SearchStrategy[torch.Tensor]:
    each = st.integers(low, high) | st.integers(-(2**31), 2**31 - 1)
    return st.lists(each, min_size=least, max_size=most).map(lambda v: i32(*v))


@settings(deadline=None, max_examples=60)
@given(values(-1, 14, 6, 6), values(-1, 14, 1), values(-1, 3, 12, 12), values(0, 12, 1, 1), BLOCKS)
def test_unchecked_values_stay_within_bounds(indptr, some, of_blocks, count, block) -> None:
    """As on a GPU, where nobody looks: whatever they hold, no index is beyond its tensor.

    Torch raises where one is.
    """
    with pytest.MonkeyPatch.context() as unchecked:
        unchecked.setattr(adapters, "readable", lambda *_: False)
        unchecked.setattr(routing_module, "readable", lambda *_: False)
        rows = len(some)
        expert_ids = adapters.to_mlc_triton(indptr, rows, block)
        assert within(expert_ids, -1, EXPERTS)
        m_indices, places = adapters.to_deepgemm_contiguous(indptr, rows, block)
        assert within(m_indices, -1, EXPERTS)
        assert within(places.rows, -1, rows) and within(places.places, -1, len(places.rows))
        masked_m, places = adapters.to_deepgemm_masked(indptr, rows, block)
        assert within(masked_m, 0, block + 1)
        assert within(places.rows, -1, rows) and within(places.places, -1, len(places.rows))
        strange = Routing(indptr, some[:, None], some[:, None])
        made = adapters.to_sglang(strange, block)
        assert within(made.sorted_token_ids, 0, rows + 1) and within(made.expert_ids, -1, EXPERTS)
        assert within(adapters.to_huggingface(strange), 0, EXPERTS + 1)
        made_of_strange = (
            adapters.from_sglang(some, of_blocks, count, (3, 2), EXPERTS, block),
            adapters.from_deepgemm_contiguous(some, EXPERTS, 1),
            adapters.from_deepgemm_masked(some, block),
        )
    for routing in made_of_strange:
        size = routing.slots.numel()
        check_indptr(routing.indptr, size)
        assert within(routing.tokens, 0, size) and within(routing.slots, -1, size)


def within(values: torch.Tensor, low: int, beyond: int) -> bool:
    return bool(((values >= low) & (values < beyond)).all())
