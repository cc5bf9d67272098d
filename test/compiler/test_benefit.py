"""What a fusion saves, by types: bytes of values, and what is left out."""

import pytest

from qfuse.compiler.benefit import savings, size_of
from qfuse.compiler.runtime.report import Savings
from qfuse.dialects.bindings import ir
from qfuse.dialects.registry import load_all

SCHEME = '!qfuse.qtensor<tensor<{}>, #qfuse.scheme<array<i64: {}>, {}, "{}", "{}", "row_major">>'
SIZES = {
    "tensor<4x512xbf16>": Savings(bytes=4096),
    "tensor<?x512xbf16>": Savings(bytes_per_row=1024),
    "tensor<1x?x8x64xf32>": Savings(bytes_per_row=2048),
    "tensor<?x8xi64>": Savings(bytes_per_row=64),
    "tensor<3xi1>": Savings(bytes=3),
    "tensor<f16>": Savings(bytes=2),
    SCHEME.format("?x512xf8E4M3FN", "1, 128", "f32", "none", "none"): Savings(0, 0, 512 + 16),
    SCHEME.format("?x64xi8", "1, 32", "f16", "q8_1", "none"): Savings(0, 0, 64 + 8),
    SCHEME.format("6x64xi4", "1, 32", "bf16", "int4", "int"): Savings(0, 6 * (32 + 4 + 2)),
    "!torch.vtensor<[1,?,32],bf16>": Savings(bytes_per_row=64),
    "!torch.vtensor<[3],si64>": Savings(bytes=24),
    "!torch.int": Savings(),
    "!torch.list<vtensor>": Savings(),
}


@pytest.mark.parametrize("type_", SIZES)
def test_size(type_: str) -> None:
    with ir.Context(), ir.Location.unknown():
        load_all()
        assert size_of(ir.Type.parse(type_)) == SIZES[type_]


def test_weights_and_constants_are_left_out() -> None:
    """An operand that is read twice counts once, as a kernel's."""
    text = """
    !y = tensor<?x32xbf16>
    func.func @main(%x: tensor<?x16xbf16>, %w: tensor<32x16xbf16>) -> !y {
      %c = arith.constant dense<2.0> : tensor<f32>
      %0 = "qfuse.matmul"(%x, %w) ({
      ^bb0(%acc: f32):
        "qfuse.yield"(%acc) : (f32) -> ()
      }) {parts = array<i64: 32>, maps = [],
        operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>,
        resultSegmentSizes = array<i32: 1, 0, 0, 0>}
        : (tensor<?x16xbf16>, tensor<32x16xbf16>) -> !y
      %1 = "qfuse.mul"(%0, %c) : (!y, tensor<f32>) -> !y
      %2 = "qfuse.mul"(%1, %1) : (!y, !y) -> !y
      return %2 : !y
    }"""
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(text)
        (main,) = module.body.operations
        _, product, scaled, square, _ = (op.operation for op in main.regions[0].blocks[0])
        assert savings([product], []) == Savings(1, 0, 32 + 64)
        assert savings([scaled], []) == savings([square], []) == Savings(1, 0, 128)
        assert savings([product, scaled, square], [product]) == Savings(2, 0, 256)


def test_text() -> None:
    texts = {
        Savings(): "nothing",
        Savings(1): "1 launch",
        Savings(2, 0, 1024): "2 launches, 1024 B a row",
        Savings(6, -12, 760): "6 launches, -12 B, 760 B a row",
    }
    assert {saved: str(saved) for saved in texts} == texts
    assert Savings(2, 8, 10).of_rows(3) == 38
