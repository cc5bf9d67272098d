"""From the contract of `routing.py` to the conventions of others, and back.

T tokens choose k experts each, out of E; the rows of a product are their T * k choices, sorted by
expert, and `indptr` says whose they are.  What else is in use:

| whose | how it says whose a row is | what is nobody's |
|---|---|---|
| MLC LLM's Triton kernels | `indptr`, and the expert of each block of rows | block of -1: returns |
| MLC LLM's CUTLASS kernels | int64 ends per expert | there is none |
| torch's grouped products | int32 ends per expert | rows after the last end: anything |
| SGLang, vLLM | choices in padded blocks, and their experts | block of -1: writes zeros |
| DeepGEMM, contiguous | the expert of each row, padded | -1: hold anything |
| DeepGEMM, masked | rows per expert, each in a matrix of its own | later rows: not written |
| Hugging Face | the expert of each choice | ids from E on |

All of this runs on any device and waits for none.  Shapes and types are always checked, values
where they are on the CPU; with `debug=True` also elsewhere, for which the call waits.  Values that
nobody checks give some routing, whatever they are, but never one that reads out of bounds.

Raises QfuseError, in one line, for what does not fit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from qfuse.compiler.routing import (
    MAX_ROWS,
    Routing,
    check_indptr,
    expect,
    expect_indptr,
    expect_positive,
    experts_of_rows,
    readable,
    route,
)
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.verify import ceil_div


class Places(NamedTuple):
    """How rows lie in a larger matrix that has padding.

    `padded = x[rows.clamp(min=0)]` lays out an x that has rows; `y = padded_y[places.clamp(min=0)]`
    takes them back.
    """

    rows: torch.Tensor
    """int32: the row that each place of the padded matrix holds, -1 for padding."""
    places: torch.Tensor
    """int32: the place of each row, -1 for one that is nobody's."""


# MLC LLM, with Triton


def to_mlc_triton(
    indptr: torch.Tensor, rows: int, block_m: int, *, debug: bool = False
) -> torch.Tensor:
    """The expert of each block of `block_m` rows, int32 [ceil(rows / block_m) + E].

    The blocks of expert e begin at ceil(indptr[e] / block_m) + e; those between the last of an
    expert and the first of the next are -1, as are all that are nobody's.  `indptr` is the same
    there as here, but MLC LLM's has all rows, and leaves what follows undefined.

    Source: mlc-llm, python/mlc_llm/op/triton.py, `_compute_expert_id_per_block` and the kernel
    `_triton_w8a8_block_fp8_group_gemm`.
    """
    expect_positive("to_mlc_triton: block_m", block_m)
    check_indptr(indptr, rows, debug=debug)
    experts = len(indptr) - 1
    first = _ceil_div(indptr, block_m) + torch.arange(experts + 1, device=indptr.device)
    block = torch.arange(ceil_div(rows, block_m) + experts, device=indptr.device)
    found = torch.searchsorted(first, block, right=True) - 1
    expert = found.clamp(0, experts - 1)
    there = (found == expert) & (block < (first[:-1] + _ceil_div(indptr.diff(), block_m))[expert])
    return torch.where(there, expert, -1).int()


def from_mlc_triton(
    indptr: torch.Tensor, expert_ids: torch.Tensor, rows: int, block_m: int, *, debug: bool = False
) -> torch.Tensor:
    """The `indptr` of this contract, which is MLC LLM's; `expert_ids` must be what follows from it.

    Source: as for `to_mlc_triton`.
    """
    expect_positive("from_mlc_triton: block_m", block_m)
    check_indptr(indptr, rows, whole=True, debug=debug)
    blocks = ceil_div(rows, block_m) + len(indptr) - 1
    expect("from_mlc_triton: expert_ids", expert_ids, (torch.int32,), (blocks,))
    if readable(expert_ids, debug):
        wanted = to_mlc_triton(indptr, rows, block_m)
        if bool((expert_ids != wanted).any()):
            block = int((expert_ids != wanted).int().argmax())
            raise QfuseError(
                f"from_mlc_triton: expert_ids[{block}] is {int(expert_ids[block])}; by indptr, "
                f"with blocks of {block_m} rows, it is {int(wanted[block])}"
            )
    return indptr


# Ends of experts: MLC LLM with CUTLASS, and torch


def to_mlc_cutlass(indptr: torch.Tensor) -> torch.Tensor:
    """Where the rows of each expert end, int64 [E].  All rows must be some expert's there.

    Source: mlc-llm, python/mlc_llm/op/cutlass.py, `group_gemm` and
    `fp8_groupwise_scaled_group_gemm`, which assert int64 [num_experts].
    """
    expect_indptr("to_mlc_cutlass: indptr", indptr)
    return indptr[1:].long()


def from_mlc_cutlass(ends: torch.Tensor, rows: int, *, debug: bool = False) -> torch.Tensor:
    """`indptr` from int64 [E] ends of experts, of which the last is `rows`.

    Source: as for `to_mlc_cutlass`.
    """
    return _from_ends("from_mlc_cutlass", ends, torch.int64, rows, whole=True, debug=debug)


def to_torch_offs(indptr: torch.Tensor) -> torch.Tensor:
    """Where the rows of each expert end, int32 [E]: `offs` of torch.nn.functional.grouped_mm.

    Source: that function's documentation, and transformers' integrations/moe.py, which makes it
    by a cumulative sum and expects rows after the last end to be undefined.
    """
    expect_indptr("to_torch_offs: indptr", indptr)
    return indptr[1:].clone()


def from_torch_offs(offs: torch.Tensor, rows: int, *, debug: bool = False) -> torch.Tensor:
    """`indptr` from int32 [E] ends of experts, of which the last is at most `rows`.

    Source: as for `to_torch_offs`.
    """
    return _from_ends("from_torch_offs", offs, torch.int32, rows, whole=False, debug=debug)


def _from_ends(
    name: str, ends: torch.Tensor, dtype: torch.dtype, rows: int, *, whole: bool, debug: bool
) -> torch.Tensor:
    expect(f"{name}: ends", ends, (dtype,), ("E",))
    expect_positive(f"{name}: the number of experts", len(ends))
    if readable(ends, debug) and bool(((ends < 0) | (ends > MAX_ROWS)).any()):
        raise QfuseError(f"{name}: ends lie within 0..{MAX_ROWS}; found {_range(ends)}")
    indptr = torch.nn.functional.pad(ends.int(), (1, 0))
    try:
        check_indptr(indptr, rows, whole=whole, debug=debug)
    except QfuseError as error:
        raise QfuseError(f"{name}: {error}, where indptr is 0 and then these ends") from None
    return indptr


# SGLang and vLLM


class SglangRouting(NamedTuple):
    """What `moe_align_block_size` of SGLang and vLLM returns, in this order."""

    sorted_token_ids: torch.Tensor
    """int32 [padded]: choices token * k + j, each expert's filled with T * k to whole blocks."""
    expert_ids: torch.Tensor
    """int32 [blocks]: the expert of each block; of -1 the rows of the result are zero."""
    num_tokens_post_padded: torch.Tensor
    """int32 [1]: how much of `sorted_token_ids` counts."""


def to_sglang(routing: Routing, block_m: int) -> SglangRouting:
    """Choices in blocks of `block_m`; those of no expert come last, in blocks of -1.

    Source: sglang, python/sglang/srt/layers/moe/fused_moe_triton/moe_align_block_size.py, and
    vllm, vllm/model_executor/layers/fused_moe/moe_align_block_size.py, where an `expert_map` makes
    the -1; how long the tensors are, beyond what counts, differs between their versions.
    """
    expect_positive("to_sglang: block_m", block_m)
    _expect_routing("to_sglang", routing)
    slots, experts = routing.slots.flatten(), len(routing.indptr) - 1
    choices = len(slots)
    # nobody's choices as those of one more expert
    nobody = slots < 0
    after = routing.indptr[-1] + nobody.cumsum(0) - 1
    row = torch.where(nobody, after, slots).clamp(0, max(choices - 1, 0))
    padded = _pad(torch.nn.functional.pad(routing.indptr, (0, 1), value=choices), choices, block_m)
    place = padded.places[row].clamp(min=0).long()
    numbers = torch.arange(choices, dtype=torch.int32, device=slots.device)
    ids = numbers.new_full((len(padded.blocks) * block_m,), choices).scatter(0, place, numbers)
    expert = torch.where(padded.blocks < experts, padded.blocks, -1).int()
    return SglangRouting(ids, expert, (padded.used * block_m).int())


def from_sglang(
    sorted_token_ids: torch.Tensor,
    expert_ids: torch.Tensor,
    num_tokens_post_padded: torch.Tensor,
    shape: Sequence[int],
    num_experts: int,
    block_m: int,
    *,
    debug: bool = False,
) -> Routing:
    """The routing of ids of `shape` (T, k).

    Entries that are not choices are padding.  A choice that is not there, or in a block of -1, is
    no expert's.  Choices may lie in any order; in the result they are in this contract's.

    Source: as for `to_sglang`.
    """
    name = "from_sglang"
    expect(f"{name}: sorted_token_ids", sorted_token_ids, (torch.int32,), ("padded",))
    expect(f"{name}: expert_ids", expert_ids, (torch.int32,), ("blocks",))
    expect(f"{name}: num_tokens_post_padded", num_tokens_post_padded, (torch.int32,), (1,))
    expect_positive(f"{name}: num_experts", num_experts)
    expect_positive(f"{name}: block_m", block_m)
    tokens, k = shape
    choices, length = tokens * k, len(sorted_token_ids)
    if len(expert_ids) < ceil_div(length, block_m):
        raise QfuseError(
            f"{name}: expert_ids has {len(expert_ids)} blocks; {length} sorted_token_ids in blocks "
            f"of {block_m} have {ceil_div(length, block_m)}"
        )
    place = torch.arange(length, device=sorted_token_ids.device)
    counted = place < num_tokens_post_padded
    there = counted & (sorted_token_ids >= 0) & (sorted_token_ids < choices)
    expert = expert_ids[place // block_m]
    if readable(sorted_token_ids, debug):
        count = int(num_tokens_post_padded)
        if not 0 <= count <= length or count % block_m:
            raise QfuseError(
                f"{name}: num_tokens_post_padded is {count}; expected whole blocks of {block_m} "
                f"within the {length} sorted_token_ids"
            )
        if bool((counted & (sorted_token_ids < 0)).any()):
            raise QfuseError(
                f"{name}: sorted_token_ids has {int(sorted_token_ids[counted].min())}; expected "
                f"choices from 0 on, and {choices} for padding"
            )
        _check_experts(f"{name}: expert_ids", expert[counted], num_experts)
        seen = sorted_token_ids[there].sort().values
        again = seen[1:][seen[1:] == seen[:-1]]
        if len(again):
            raise QfuseError(f"{name}: sorted_token_ids has choice {int(again[0])} more than once")
    # one more, for what is no choice
    ids = expert_ids.new_full((choices + 1,), -1)
    ids = ids.scatter(0, torch.where(there, sorted_token_ids, choices).long(), expert)
    return route(ids[:choices].view(tokens, k), num_experts)


# DeepGEMM


def to_deepgemm_contiguous(
    indptr: torch.Tensor, rows: int, alignment: int = 128, *, debug: bool = False
) -> tuple[torch.Tensor, Places]:
    """`m_indices` int32 [padded], and how the rows lie in a matrix of so many.

    Each expert begins at a multiple of `alignment`; padding is -1, and a block of nothing else
    comes to nothing.  There is as much of it as any routing needs.

    Source: DeepGEMM, `m_grouped_fp8_gemm_nt_contiguous`, its tests/generators.py, and
    `is_computation_valid` of its scheduler, which reads the first row of each block.  `alignment`
    is what `get_mk_alignment_for_contiguous_layout` gives.
    """
    expect_positive("to_deepgemm_contiguous: alignment", alignment)
    check_indptr(indptr, rows, debug=debug)
    experts, padded = len(indptr) - 1, _pad(indptr, rows, alignment)
    expert = padded.blocks.repeat_interleave(alignment, output_size=len(padded.rows))
    m_indices = torch.where((padded.rows >= 0) & (expert < experts), expert, -1).int()
    return m_indices, Places(padded.rows, padded.places)


def from_deepgemm_contiguous(
    m_indices: torch.Tensor, num_experts: int, alignment: int = 128, *, debug: bool = False
) -> Routing:
    """The routing of padded rows, each as a token with one choice: `tokens` are the places of
    rows, and `slots` the rows of places.

    `indptr[E]` rows are there; they are fewer than the T = padded rows.  Source: as for
    `to_deepgemm_contiguous`.
    """
    name = "from_deepgemm_contiguous: m_indices"
    expect(name, m_indices, (torch.int32,), ("padded",))
    expect_positive("from_deepgemm_contiguous: alignment", alignment)
    if len(m_indices) % alignment:
        raise QfuseError(f"{name} are {len(m_indices)}; expected a multiple of {alignment}")
    if readable(m_indices, debug):
        _check_experts(name, m_indices, num_experts)
        blocks = m_indices.view(-1, alignment)
        odd = (blocks != blocks[:, :1]) & (blocks != -1)
        if bool(odd.any()):
            place = int(odd.flatten().int().argmax())
            first = place // alignment * alignment
            raise QfuseError(
                f"{name}[{place}] is {int(m_indices[place])}, but its block of {alignment} rows "
                f"begins with {int(m_indices[first])}, which goes for all of them"
            )
    return route(m_indices[:, None], num_experts)


def to_deepgemm_masked(
    indptr: torch.Tensor, rows: int, max_m: int, *, debug: bool = False
) -> tuple[torch.Tensor, Places]:
    """`masked_m` int32 [E], and how the rows lie in a matrix [E * max_m, K], seen as [E, max_m, K].

    An expert has at most `max_m` rows; where more are not noticed, they have no place.

    Source: DeepGEMM, `m_grouped_fp8_gemm_nt_masked`, where rows from masked_m[e] on are neither
    read nor written.
    """
    expect_positive("to_deepgemm_masked: max_m", max_m)
    check_indptr(indptr, rows, debug=debug)
    if (len(indptr) - 1) * max_m > MAX_ROWS:
        raise QfuseError(
            f"to_deepgemm_masked: {len(indptr) - 1} experts of max_m = {max_m} rows are more than "
            f"{MAX_ROWS}; places are counted in int32"
        )
    counts = indptr.diff()
    if readable(counts, debug) and bool((counts > max_m).any()):
        e = int((counts > max_m).int().argmax())
        raise QfuseError(
            f"to_deepgemm_masked: expert {e} has {int(counts[e])} rows; max_m is {max_m}"
        )
    masked_m = counts.clamp(0, max_m)
    offset = torch.arange(max_m, dtype=torch.int32, device=indptr.device)
    held = torch.where(offset < masked_m[:, None], indptr[:-1, None] + offset, -1)
    expert, offset = experts_of_rows(indptr, rows)
    place = expert.long() * max_m + offset
    there = (expert < len(counts)) & (offset >= 0) & (offset < max_m)
    # the limit is for the sake of an indptr that nobody checked
    held = held.flatten().clamp(-1, rows - 1)
    return masked_m, Places(held, torch.where(there, place, -1).int())


def from_deepgemm_masked(masked_m: torch.Tensor, max_m: int, *, debug: bool = False) -> Routing:
    """The routing of E * `max_m` places, each as a token with one choice: `tokens` are the places
    of rows, and `slots` the rows of places.

    `indptr[E]` rows are there.  Source: as for `to_deepgemm_masked`.
    """
    name = "from_deepgemm_masked: masked_m"
    expect(name, masked_m, (torch.int32,), ("E",))
    expect_positive("from_deepgemm_masked: max_m", max_m)
    if readable(masked_m, debug) and bool(((masked_m < 0) | (masked_m > max_m)).any()):
        raise QfuseError(f"{name} lie within 0..{max_m} = max_m; found {_range(masked_m)}")
    experts = torch.arange(len(masked_m), dtype=torch.int32, device=masked_m.device)
    offset = torch.arange(max_m, device=masked_m.device)
    ids = torch.where(offset < masked_m[:, None], experts[:, None], -1)
    return route(ids.view(-1, 1), len(masked_m))


# Hugging Face


def to_huggingface(routing: Routing) -> torch.Tensor:
    """`top_k_index` int64 [T, k]: the expert of each choice, E where it is no expert's.

    Source: transformers, integrations/finegrained_fp8.py and moe.py: in expert parallelism an id
    of `num_experts` is one that another device has; what came of it is filled with zeros.
    """
    _expect_routing("to_huggingface", routing)
    slots, experts = routing.slots, len(routing.indptr) - 1
    expert, _ = experts_of_rows(routing.indptr, slots.numel())
    found = expert[slots.clamp(0, max(slots.numel() - 1, 0)).long()]
    return torch.where(slots < 0, experts, found)


def from_huggingface(
    top_k_index: torch.Tensor, num_experts: int, *, debug: bool = False
) -> Routing:
    """The routing of int64 [T, k] ids, of which those from `num_experts` on are no expert's.

    Source: as for `to_huggingface`.
    """
    name = "from_huggingface: top_k_index"
    expect(name, top_k_index, (torch.int64,), ("T", "k"))
    if readable(top_k_index, debug) and bool((top_k_index < 0).any()):
        raise QfuseError(
            f"{name} has {int(top_k_index.min())}; there, no expert is an id from {num_experts} on"
        )
    return route(top_k_index, num_experts)


# What they share


class _Padded(NamedTuple):
    """Rows of groups, each of which begins a block."""

    rows: torch.Tensor
    places: torch.Tensor
    blocks: torch.Tensor
    """int64: the group of each block, as many as there are groups where it is of none."""
    used: torch.Tensor
    """int64 [1]: how many blocks have rows."""


def _pad(indptr: torch.Tensor, rows: int, height: int) -> _Padded:
    """In blocks of `height` places, as many as any `indptr` over `rows` rows can need."""
    groups = len(indptr) - 1
    most = (rows + min(rows, groups) * (height - 1)) // height
    counts = indptr.diff()
    last = _ceil_div(counts, height).cumsum(0)
    first = torch.nn.functional.pad(last, (1, 0))
    block = torch.arange(most, device=indptr.device)
    group = torch.searchsorted(last, block, right=True)
    place = torch.arange(most * height, device=indptr.device)
    of_place = group.repeat_interleave(height, output_size=most * height)
    offset = place - first[of_place] * height
    inside = offset < torch.nn.functional.pad(counts, (0, 1))[of_place]
    held = torch.where(inside, indptr[of_place] + offset, -1)
    of_row, offset_of_row = experts_of_rows(indptr, rows)
    places = torch.where(of_row < groups, first[of_row] * height + offset_of_row, -1)
    # limits for the sake of an indptr that nobody checked
    held, places = held.clamp(-1, rows - 1), places.clamp(-1, len(place) - 1)
    return _Padded(held.int(), places.int(), group, last[-1:])


def _ceil_div(values: torch.Tensor, by: int) -> torch.Tensor:
    return (values.long() + by - 1) // by


def _expect_routing(name: str, routing: Routing) -> None:
    expect_indptr(f"{name}: indptr", routing.indptr)
    expect(f"{name}: slots", routing.slots, (torch.int32,), ("T", "k"))


def _check_experts(name: str, experts: torch.Tensor, num_experts: int) -> None:
    if bool(((experts < -1) | (experts >= num_experts)).any()):
        raise QfuseError(f"{name} lie within -1..{num_experts - 1}; found {_range(experts)}")


def _range(values: torch.Tensor) -> str:
    return f"{int(values.min())}..{int(values.max())}"
