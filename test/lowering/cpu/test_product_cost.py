"""Which entries the written model gives which rows."""

import pytest
from cpu_kernels import TESTED_LEVELS, compiled, matmul_text, plain, quantized
from schemes import int4, plain_x, q4_k, q6_k, quantized_x, simple

from qfuse.dialects.types import Shaped
from qfuse.lowering.cpu.kernel import CompiledKernel
from qfuse.lowering.cpu.product_cost import UNITS_ROWS

K = 512
PRODUCTS: dict[str, tuple[Shaped, Shaped]] = {
    "fp8 in blocks": (quantized(-1, K), quantized(64, K, block=(128, 128))),
    "i8 by i8": (quantized_x(1, K, "i8", 0).type, simple(64, K, "i8", (1, 0)).type),
    "int4 by bf16": (plain_x(1, K, "bf16").type, int4(64, K, 32).type),
    "q4_k by q8_1": (quantized_x(1, K, "i8", 32, "f16", "q8_1").type, q4_k(64, K).type),
    "q6_k by q8_1": (quantized_x(1, K, "i8", 32, "f16", "q8_1").type, q6_k(64, K).type),
}


def kernel(name: str, level: str) -> CompiledKernel:
    x, w = PRODUCTS[name]
    return compiled(matmul_text(x, w, [plain(-1, 64)]), level)


@pytest.mark.parametrize("level", TESTED_LEVELS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_number_of_rows_has_one_entry(name: str, level: str) -> None:
    entries = kernel(name, level).entries
    for m in range(1, 3 * UNITS_ROWS):
        (entry,) = (e for e in entries if e.serves(m))
        assert entry.can_serve(m)
        assert entry.limit is None or m <= entry.limit
    assert entries[-1].symbol == "run" and entries[-1].m_max is None


@pytest.mark.skipif("avx512" not in TESTED_LEVELS, reason="this CPU lacks AVX-512")
def test_what_decodes_slowly_is_decoded_once() -> None:
    """Six bits cost many instructions, and four fewer; few rows are decoded in registers always."""
    staged = {name: kernel(name, "avx512").entries[-1].m_min for name in PRODUCTS}
    assert staged["q6_k by q8_1"] == 17
    assert staged["int4 by bf16"] > staged["i8 by i8"] >= 17
    assert all(low <= UNITS_ROWS + 1 for low in staged.values())
    for name in PRODUCTS:
        found = kernel(name, "avx512")
        few = [found.entry(m).symbol for m in (1, 2, 4, 8, 9, 16)]
        assert few == ["run1", "run4", "run4", "run8", "run16", "run16"]


@pytest.mark.skipif("avx2" not in TESTED_LEVELS, reason="this CPU lacks AVX2")
def test_with_avx2_eight_bits_are_decoded_once_for_more_than_four_rows() -> None:
    for name in ("fp8 in blocks", "i8 by i8", "int4 by bf16", "q4_k by q8_1"):
        found = kernel(name, "avx2")
        assert [found.entry(m).symbol for m in (1, 2, 4)] == ["run1", "run4", "run4"]
        eight_bits = name in ("fp8 in blocks", "i8 by i8")
        assert found.entry(8).symbol == ("run" if eight_bits else "run_units")


def test_without_avx2_one_row_alone_is_decoded_in_registers() -> None:
    if "generic" in TESTED_LEVELS:
        entries = kernel("fp8 in blocks", "generic").entries
        assert [(e.symbol, e.m_min, e.m_max) for e in entries] == [("run1", 1, 1), ("run", 2, None)]
