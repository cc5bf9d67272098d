"""`fp8_groupwise_scaled_gemm`: every refusal is one line that says what, and what would do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gemm_cases import BF16, BLOCK, E4M3, E5M2, operands

from qfuse.compiler import fp8_groupwise_scaled_gemm, operators
from qfuse.compiler.gemm import Operands
from qfuse.dialects.errors import QfuseError

Edit = Callable[[Operands], dict[str, Any]]

REFUSED: dict[str, tuple[Edit, str]] = {
    "no tensor": (lambda o: {"x": [1]}, "x is a list, not a tensor"),
    "x not FP8": (
        lambda o: {"x": o.x.to(BF16)},
        "x is bfloat16; expected float8_e4m3fn, float8_e5m2",
    ),
    "fnuz": (lambda o: {"x": o.x.view(torch.float8_e4m3fnuz)}, "x is float8_e4m3fnuz; expected"),
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
        "weight_scale is bfloat16 [2, 3]; expected float32 [2, 3]",
    ),
    "int scale": (
        lambda o: {"weight_scale": o.weight_scale.int()},
        "weight_scale is int32 [2, 3]; expected float32",
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
    "x_scale transposed": (
        lambda o: {"x_scale": torch.ones(3, 5)},
        "x_scale is float32 [3, 5]; expected float32 [5, 3]",
    ),
    "x_scale flat": (lambda o: {"x_scale": torch.ones(15)}, "x_scale is float32 [15]"),
    "weight_scale rows": (
        lambda o: {"weight_scale": torch.ones(1, 3)},
        "weight_scale is float32 [1, 3]; expected float32 [2, 3], one per block of 128 x 128 of "
        "weight [130, 300]",
    ),
    "weight_scale columns": (
        lambda o: {"weight_scale": torch.ones(2, 4)},
        "weight_scale is float32 [2, 4]; expected float32 [2, 3]",
    ),
    "x 3-D": (lambda o: {"x": o.x[None]}, "x is [1, 5, 300]; expected [M, K]"),
    "weight 1-D": (lambda o: {"weight": o.weight[0]}, "weight is [300]; expected [N, 300]"),
    "K differs": (
        lambda o: {"weight": o.weight[:, :299].contiguous()},
        "weight is [130, 299]; expected [N, 300], as x is [5, 300]",
    ),
    "x not contiguous": (
        lambda o: {"x": o.x.t().contiguous().t()},
        "x is [5, 300] with strides [1, 5], not contiguous; pass x.contiguous()",
    ),
    "x of wider rows": (
        lambda o: {"x": torch.zeros(5, 320).to(E4M3)[:, :300]},
        "x is [5, 300] with strides [320, 1], not contiguous",
    ),
    "weight by columns": (
        lambda o: {"weight": o.weight.t().contiguous().t()},
        "weight is [130, 300] with strides [1, 130], not contiguous; pass weight.contiguous()",
    ),
    "x_scale strided": (
        lambda o: {"x_scale": torch.ones(5, 6)[:, ::2]},
        "x_scale is [5, 3] with strides [6, 2], not contiguous",
    ),
    "weight_scale by columns": (
        lambda o: {"weight_scale": torch.ones(3, 2).t()},
        "weight_scale is [2, 3] with strides [1, 2], not contiguous",
    ),
    "devices": (lambda o: {"weight": o.weight.to("meta")}, "weight is on meta, but x on cpu"),
    "scale's device": (
        lambda o: {"x_scale": o.x_scale.to("meta")},
        "x_scale is on meta, but x on cpu",
    ),
    "out_dtype": (
        lambda o: {"out_dtype": "float64"},
        "out_dtype 'float64' is not one of float16, bfloat16, float32",
    ),
    "out_dtype's name": (lambda o: {"out_dtype": "bf16"}, "out_dtype 'bf16' is not one of"),
    "out_dtype no dtype": (lambda o: {"out_dtype": "nn"}, "out_dtype 'nn' is not one of"),
    "out_dtype a list": (lambda o: {"out_dtype": ["float16"]}, "out_dtype ['float16'] is not one"),
    "out_dtype of integers": (lambda o: {"out_dtype": torch.int8}, "out_dtype torch.int8 is not"),
    "block zero": (
        lambda o: {"block_size": (0, 128)},
        "block_size [0, 128] is not two positive extents (bn, bk)",
    ),
    "block a number": (lambda o: {"block_size": 128}, "block_size 128 is not two positive"),
    "block of one": (lambda o: {"block_size": [128]}, "block_size [128] is not two positive"),
    "block of floats": (lambda o: {"block_size": (128.0, 128)}, "block_size (128.0, 128) is not"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    edit, message = REFUSED[case]
    o = operands(5, 130, 300)
    arguments = {**o._asdict(), "block_size": BLOCK, "out_dtype": "bfloat16", **edit(o)}
    with pytest.raises(QfuseError) as caught:
        fp8_groupwise_scaled_gemm(**arguments)
    text = str(caught.value)
    assert text.startswith(f"{operators.NAME}: ") and message in text and "\n" not in text


def test_empty_products_are_refused() -> None:
    for n, k in ((130, 0), (0, 300)):
        o = Operands(
            torch.zeros(5, k).to(E4M3),
            torch.zeros(5, -(-k // 128)),
            torch.zeros(n, k).to(E4M3),
            torch.zeros(-(-n // 128), -(-k // 128)),
        )
        with pytest.raises(QfuseError, match="neither N nor K may be 0"):
            fp8_groupwise_scaled_gemm(*o, BLOCK, "bfloat16")


def test_the_operator_checks_too() -> None:
    """Called through torch.ops, past the Python function."""
    o = operands(5, 130, 300)
    for block, dtype in (([128], BF16), ([0, 1], BF16), ([128, 128], torch.int8)):
        with pytest.raises(QfuseError, match="is not"):
            torch.ops.qfuse.fp8_groupwise_scaled_gemm(*o, block, dtype)


def test_blocks_without_a_kernel() -> None:
    """The lowering's reason, with the operator's name; it is not remembered as compiled."""
    for _ in range(2):
        with pytest.raises(QfuseError) as caught:
            fp8_groupwise_scaled_gemm(*operands(5, 130, 300, (100, 24)), (100, 24), "bfloat16")
        text = str(caught.value)
        assert text.startswith(f"{operators.NAME}: N = 130, K = 300, block [100, 24], f8E4M3FN: ")
        assert "blocks of [100, 24] have no CPU kernel" in text and "\n" not in text


def test_misaligned_tensors() -> None:
    """The CPU takes any address; a GPU's kernels do not."""
    o = operands(5, 130, 300)
    memory = torch.zeros(5 * 300 + 1, dtype=torch.uint8)
    x = memory[1:].view(E4M3).view(5, 300).copy_(o.x)
    y = fp8_groupwise_scaled_gemm(x, *o[1:], BLOCK, "bfloat16")
    assert torch.equal(y, fp8_groupwise_scaled_gemm(*o, BLOCK, "bfloat16"))
    with pytest.raises(QfuseError, match=r"x lies at 0x.*multiples of 16 bytes; pass x\.clone"):
        operators._check_alignment(o._replace(x=x))
