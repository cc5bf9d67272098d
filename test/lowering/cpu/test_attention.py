"""Attention kernels against torch in f64, and against themselves with other numbers of tokens."""

import pytest
import torch
from cpu_kernels import TESTED_LEVELS, TORCH, Tensor, kernel_text, plain, run, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from qfuse.compiler.torch_ops import attention
from qfuse.dialects.types import Shaped

levels = pytest.mark.parametrize("level", TESTED_LEVELS)
ULP = {"f32": 2.0**-23, "bf16": 2.0**-7, "f16": 2.0**-10}  # largest relative distance


class Case:
    """Random operands; slots of the caches that no token may see hold NaN."""

    def __init__(
        self,
        tokens: int,
        start: int,
        heads: tuple[int, int] = (4, 2),
        widths: tuple[int, int] = (64, 64),
        capacity: int = 100,
        batch: int = 1,
        dtype: str = "bf16",
        window: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(tokens + start)
        self.window, self.dtype, self.heads, self.widths = window, dtype, heads, widths
        self.capacity, self.scale = capacity, widths[0] ** -0.5

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(TORCH[dtype])

        self.q = random(batch, tokens, heads[0], widths[0])
        self.k, self.v = (random(batch, heads[1], capacity, width) for width in widths)
        for cache in (self.k, self.v):
            cache[:, :, start + tokens :] = torch.nan
        self.position = torch.arange(start, start + tokens)

    @property
    def text(self) -> str:
        batch, heads, kv_heads = len(self.q), *self.heads
        types = [plain(batch, -1, heads, self.widths[0], dtype=self.dtype)]
        types += [plain(batch, kv_heads, self.capacity, w, dtype=self.dtype) for w in self.widths]
        operands = [*types, plain(-1, dtype="i64")]
        attributes = f"scale = {self.scale:e} : f64, window = {self.window} : i64"
        return kernel_text("attention", operands, [self.result], attributes)

    @property
    def result(self) -> Shaped:
        return plain(len(self.q), -1, self.heads[0], self.widths[1], dtype=self.dtype)

    def run(self, level: str | None = None, first: int = 0, threads: int = 1) -> Tensor:
        """The tokens from `first` on."""
        q, position = self.q[:, first:].contiguous(), self.position[first:].contiguous()
        batch, tokens, heads, _ = q.shape
        operands = [q, self.k, self.v, position]
        rows = [batch, tokens, heads]
        (got,) = run(
            self.text, level, operands, [self.result], batch * tokens * heads, rows, threads
        )
        return got

    def check(self, level: str | None = None, threads: int = 1) -> None:
        """One rounding of the result, and f32 before: sums of up to 300 terms, and exp.

        A weighted mean has an error of the size of the values, not of its own.
        """
        got = self.run(level, threads=threads)
        k, v = self.k.double(), self.v.double()
        q = self.q.transpose(1, 2).double()
        wanted = attention(q, k, v, self.position, self.scale, self.window)
        bound = wanted.abs() * ULP[self.dtype] / 2 + 2e-6 * v.nan_to_num().abs().max()
        assert bool(((got.double() - wanted).abs() <= bound).all())


@levels
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(("tokens", "start"), [(1, 0), (1, 63), (1, 64), (7, 60), (40, 0), (3, 97)])
def test_against_torch(level: str, dtype: str, tokens: int, start: int) -> None:
    Case(tokens, start, dtype=dtype).check(level)


@pytest.mark.parametrize("window", [1, 5, 64, 90])
@pytest.mark.parametrize(("tokens", "start"), [(1, 99), (30, 65), (100, 0)])
def test_a_window(window: int, tokens: int, start: int) -> None:
    Case(tokens, start, window=window).check()


@settings(max_examples=25, deadline=None)
@given(
    group=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    width=st.integers(1, 80),
    out_width=st.integers(1, 80),
    capacity=st.integers(1, 150),
    batch=st.integers(1, 2),
    window=st.integers(0, 70),
    data=st.data(),
)
def test_any_extents(
    group: int,
    kv_heads: int,
    width: int,
    out_width: int,
    capacity: int,
    batch: int,
    window: int,
    data: st.DataObject,
) -> None:
    tokens = data.draw(st.integers(1, capacity))
    start = data.draw(st.integers(0, capacity - tokens))
    heads, widths = (group * kv_heads, kv_heads), (width, out_width)
    Case(tokens, start, heads, widths, capacity, batch, "f32", window).check(threads=2)


@levels
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (8, 1)])
def test_a_token_is_the_same_alone(level: str, heads: tuple[int, int]) -> None:
    """Rows are computed by fours, twos and ones, on any number of threads: the same bits."""
    case = Case(23, 70, heads)
    every = case.run(level, threads=2)
    for first in (1, 17, 22):
        assert same_bits(case.run(level, first), every[:, first:])


@levels
@pytest.mark.parametrize("window", [0, 300])
@pytest.mark.parametrize("heads", [(2, 1), (4, 2), (5, 5)])
def test_long_caches(level: str, heads: tuple[int, int], window: int) -> None:
    """Of few tokens the stretches of 512 slots are tasks, of many all of a token's are one; the
    bits are the same, also where the last tokens see a stretch that the first do not."""
    case = Case(140, 940, heads, (24, 40), capacity=1100, batch=2, dtype="f32", window=window)
    case.check(level, threads=2)
    every = case.run(level)
    for first in (0, 83, 84, 110, 126, 139):
        for threads in (1, 2, 5):
            assert same_bits(case.run(level, first, threads), every[:, first:])


@pytest.mark.parametrize("start", [-900, -5, 1023, 1 << 40])
@pytest.mark.parametrize("window", [0, 300])
def test_slots_outside_of_long_caches_are_not_read(start: int, window: int) -> None:
    case = Case(2, 0, capacity=1024, window=window)
    case.position = torch.arange(start, start + 2)
    case.run(threads=2)


@pytest.mark.parametrize("start", [-5, 99, 1 << 40])
def test_slots_outside_of_the_caches_are_not_read(start: int) -> None:
    """Whatever the positions say."""
    case = Case(2, 0)
    case.position = torch.arange(start, start + 2)
    case.run()


def test_scores_of_any_size() -> None:
    """The largest score is taken off before exp, block by block, and infinities stay out of it."""
    case = Case(1, 99, dtype="f32")
    case.q *= 1e4
    case.k[:, :, 80] = 0.0
    case.check()
