"""Tensors may lie at any address that their elements may have."""

import pytest
from cpu_kernels import TESTED_LEVELS, run, same_bits
from every_kernel import EVERY, OTHERS, PRODUCTS

levels = pytest.mark.parametrize("level", TESTED_LEVELS)


def check(name: str, level: str, count: int) -> None:
    kernel = EVERY[name]
    arguments, m, rows = kernel.arguments(count), kernel.m(count), kernel.rows(count)
    aligned, *others = (
        run(kernel.text, level, arguments, kernel.results, m, rows, 2, place)
        for place in (0, 1, 3, 31)
    )
    for other in others:
        assert all(map(same_bits, other, aligned))


@levels
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("m", [1, 5, 40])
def test_products(name: str, level: str, m: int) -> None:
    """x, the packed weight and its scales, bias, residual and result, all off alignment."""
    check(name, level, m)


@levels
@pytest.mark.parametrize("name", OTHERS)
def test_others(name: str, level: str) -> None:
    for m in (1, 9):
        check(name, level, m)
