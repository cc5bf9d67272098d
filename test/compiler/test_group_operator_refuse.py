"""`fp8_groupwise_scaled_group_gemm`: every refusal is a line that says what, and what would do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gemm_cases import BF16, BLOCK, E4M3, E5M2
from group_gemm_cases import group_operands

from qfuse.compiler import fp8_groupwise_scaled_group_gemm, operators
from qfuse.compiler.group_gemm import NAME, GroupOperands
from qfuse.dialects.errors import QfuseError

Edit = Callable[[GroupOperands], dict[str, Any]]


def indptr(*values: int, dtype: torch.dtype = torch.int32) -> Edit:
    return lambda _: {"indptr": torch.tensor(values, dtype=dtype)}


# x is [5, 300], weight [3, 130, 300], indptr [0, 2, 2, 5].
REFUSED: dict[str, tuple[Edit, str]] = {
    "no tensor": (lambda o: {"x": [1]}, "x is a list, not a tensor"),
    "indptr a list": (lambda o: {"indptr": [0, 2, 2, 5]}, "indptr is a list, not a tensor"),
    "x not FP8": (
        lambda o: {"x": o.x.to(BF16)},
        "x is bfloat16; expected float8_e4m3fn, float8_e5m2",
    ),
    "two types": (
        lambda o: {"weight": o.weight.view(E5M2)},
        "weight is float8_e5m2, but x is float8_e4m3fn; use one type",
    ),
    "x_scale dtype": (
        lambda o: {"x_scale": o.x_scale.half()},
        "x_scale is float16 [5, 3]; expected float32 [5, 3]",
    ),
    "weight_scale dtype": (
        lambda o: {"weight_scale": o.weight_scale.to(BF16)},
        "weight_scale is bfloat16 [3, 2, 3]; expected float32 [3, 2, 3]",
    ),
    "x_scale rows": (
        lambda o: {"x_scale": torch.ones(4, 3)},
        "x_scale is float32 [4, 3]; expected float32 [5, 3], one per row and 128 columns of x "
        "[5, 300]",
    ),
    "x_scale groups": (
        lambda o: {"x_scale": torch.ones(5, 2)},
        "x_scale is float32 [5, 2]; expected float32 [5, 3]",
    ),
    "weight_scale experts": (
        lambda o: {"weight_scale": torch.ones(2, 2, 3)},
        "weight_scale is float32 [2, 2, 3]; expected float32 [3, 2, 3], one per block of 128 x 128 "
        "of weight [3, 130, 300]",
    ),
    "weight_scale of one": (
        lambda o: {"weight_scale": torch.ones(2, 3)},
        "weight_scale is float32 [2, 3]; expected float32 [3, 2, 3]",
    ),
    "weight_scale rows": (
        lambda o: {"weight_scale": torch.ones(3, 1, 3)},
        "weight_scale is float32 [3, 1, 3]; expected float32 [3, 2, 3]",
    ),
    "weight_scale columns": (
        lambda o: {"weight_scale": torch.ones(3, 2, 4)},
        "weight_scale is float32 [3, 2, 4]; expected float32 [3, 2, 3]",
    ),
    "x 3-D": (lambda o: {"x": o.x[:, None]}, "x is [5, 1, 300]; expected [M, K]"),
    "weight of one": (
        lambda o: {"weight": o.weight[0]},
        "weight is [130, 300]; expected [E, N, 300], as x is [5, 300]",
    ),
    "K differs": (
        lambda o: {"weight": o.weight[..., :299].contiguous()},
        "weight is [3, 130, 299]; expected [E, N, 300], as x is [5, 300]",
    ),
    "weight [E, K, N]": (
        lambda o: {"weight": o.weight.transpose(1, 2).contiguous()},
        "weight is [3, 300, 130]; expected [E, N, 300]",
    ),
    "weight transposed": (
        lambda o: {"weight": o.weight.transpose(1, 2).contiguous().transpose(1, 2)},
        "weight is [3, 130, 300] with strides [39000, 1, 130], not contiguous; pass "
        "weight.contiguous()",
    ),
    "x by columns": (
        lambda o: {"x": o.x.t().contiguous().t()},
        "x is [5, 300] with strides [1, 5], not contiguous",
    ),
    "x_scale strided": (
        lambda o: {"x_scale": torch.ones(5, 6)[:, ::2]},
        "x_scale is [5, 3] with strides [6, 2], not contiguous",
    ),
    "indptr strided": (
        lambda o: {"indptr": torch.tensor([0, 9, 2, 9, 2, 9, 5, 9], dtype=torch.int32)[::2]},
        "indptr is [4] with strides [2], not contiguous; pass indptr.contiguous()",
    ),
    "devices": (lambda o: {"indptr": o.indptr.to("meta")}, "indptr is on meta, but x on cpu"),
    "indptr int64": (
        indptr(0, 2, 2, 5, dtype=torch.int64),
        "indptr is int64 [4]; expected int32 [4], where the rows of each of 3 experts begin, and M",
    ),
    "indptr float": (indptr(0, 2, 2, 5, dtype=torch.float32), "indptr is float32 [4]; expected"),
    "ends of experts": (
        indptr(2, 2, 5, dtype=torch.int64),
        "indptr is int64 [3]; expected int32 [4], where the rows of each of 3 experts begin, and "
        "M; of ends of experts, qfuse.compiler.routing_adapters makes such",
    ),
    "indptr of more experts": (indptr(0, 2, 2, 4, 5), "indptr is int32 [5]; expected int32 [4]"),
    "indptr 2-D": (
        lambda o: {"indptr": o.indptr[None]},
        "indptr is int32 [1, 4]; expected int32 [4]",
    ),
    "not from 0": (
        indptr(1, 2, 2, 5),
        "indptr[0] is 1; the rows of the first expert begin at 0",
    ),
    "negative": (indptr(-1, 2, 2, 5), "indptr[0] is -1"),
    "not monotone": (
        indptr(0, 4, 2, 5),
        "indptr[2] is 2, less than indptr[1] = 4; an expert has no fewer than 0 rows",
    ),
    "too few rows": (indptr(0, 2, 2, 4), "indptr[3] is 4; it must be the number of rows, 5"),
    "too many rows": (indptr(0, 2, 2, 6), "indptr[3] is 6; it must be the number of rows, 5"),
    "wraps around": (
        indptr(0, 2**31 - 1, -(2**31), 5),
        "indptr[2] is -2147483648, less than indptr[1] = 2147483647",
    ),
    "out_dtype": (
        lambda o: {"out_dtype": "float64"},
        "out_dtype 'float64' is not one of float16, bfloat16, float32",
    ),
    "block zero": (
        lambda o: {"block_size": (0, 128)},
        "block_size [0, 128] is not two positive extents (bn, bk)",
    ),
    "block a number": (lambda o: {"block_size": 128}, "block_size 128 is not two positive"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    edit, message = REFUSED[case]
    o = group_operands([2, 0, 3], 130, 300)
    arguments = {**o._asdict(), "block_size": BLOCK, "out_dtype": "bfloat16", **edit(o)}
    with pytest.raises(QfuseError) as caught:
        fp8_groupwise_scaled_group_gemm(**arguments)
    text = str(caught.value)
    assert text.startswith(f"{NAME}: ") and message in text and "\n" not in text


@pytest.mark.parametrize(("e", "n", "k"), [(0, 130, 300), (3, 0, 300), (3, 130, 0)])
def test_empty_products_are_refused(e: int, n: int, k: int) -> None:
    groups = -(-k // 128)
    o = GroupOperands(
        torch.zeros(5, k).to(E4M3),
        torch.zeros(5, groups),
        torch.zeros(e, n, k).to(E4M3),
        torch.zeros(e, -(-n // 128), groups),
        torch.zeros(e + 1, dtype=torch.int32),
    )
    with pytest.raises(QfuseError, match="none of E, N and K may be 0"):
        fp8_groupwise_scaled_group_gemm(*o, BLOCK, "bfloat16")


def test_without_rows_indptr_is_checked_too() -> None:
    o = group_operands([0, 0], 130, 300)
    o.indptr[1:] = 1
    with pytest.raises(QfuseError, match=r"indptr\[2\] is 1; it must be the number of rows, 0"):
        fp8_groupwise_scaled_group_gemm(*o, BLOCK, "bfloat16")


def test_the_operator_checks_too() -> None:
    """Called through torch.ops, past the Python function."""
    o = group_operands([2, 0, 3], 130, 300)
    for block, dtype in (([128], BF16), ([0, 1], BF16), ([128, 128], torch.int8)):
        with pytest.raises(QfuseError, match=f"{NAME}: .* is not"):
            torch.ops.qfuse.fp8_groupwise_scaled_group_gemm(*o, block, dtype)
    o.indptr[0] = 1
    with pytest.raises(QfuseError, match=rf"{NAME}: indptr\[0\] is 1"):
        torch.ops.qfuse.fp8_groupwise_scaled_group_gemm(*o, [128, 128], BF16)


def test_blocks_without_a_kernel() -> None:
    """The lowering's reason, with the operator's name; it is not remembered as compiled."""
    o = group_operands([2, 3], 130, 300, (100, 24))
    for _ in range(2):
        with pytest.raises(QfuseError) as caught:
            fp8_groupwise_scaled_group_gemm(*o, (100, 24), "bfloat16")
        text = str(caught.value)
        assert text.startswith(f"{NAME}: E = 2, N = 130, K = 300, block [100, 24], f8E4M3FN: ")
        assert "blocks of [100, 24] have no CPU kernel" in text and "\n" not in text


def test_misaligned_tensors() -> None:
    """The CPU takes any address; a GPU's kernels do not."""
    o = group_operands([2, 0, 3], 130, 300)
    indptr = torch.zeros(5, dtype=torch.int32)[1:].copy_(o.indptr)
    moved = o._replace(indptr=indptr)
    y = fp8_groupwise_scaled_group_gemm(*moved, BLOCK, "bfloat16")
    assert torch.equal(y, fp8_groupwise_scaled_group_gemm(*o, BLOCK, "bfloat16"))
    with pytest.raises(QfuseError, match=r"indptr lies at 0x.*of 16 bytes; pass indptr\.clone"):
        operators._check_alignment(moved)
