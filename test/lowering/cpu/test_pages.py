"""Large pages are asked for where they pay, and only within the memory that was given."""

import mmap
from unittest import mock

import pytest

from qfuse.lowering.cpu import pages
from qfuse.lowering.cpu.layout import WeightLayout
from qfuse.lowering.cpu.weights import empty_weight


@pytest.mark.parametrize("before", [0, 64, mmap.PAGESIZE - 1])
def test_whole_pages_of_the_memory_are_asked_for(before: int) -> None:
    size, start = pages.LEAST_BYTES, 1 << 30
    asked = mock.Mock()
    with mock.patch.object(pages, "_madvise", return_value=asked):
        pages.prefer_large_pages(start + before, size)
    ((begin, length, wish), _) = asked.call_args
    assert begin % mmap.PAGESIZE == length % mmap.PAGESIZE == 0
    assert start + before <= begin and begin + length <= start + before + size
    assert length > size - 2 * mmap.PAGESIZE
    assert wish == mmap.MADV_HUGEPAGE


def test_little_memory_is_left_alone() -> None:
    asked = mock.Mock()
    with mock.patch.object(pages, "_madvise", return_value=asked):
        pages.prefer_large_pages(1 << 30, pages.LEAST_BYTES - 1)
    asked.assert_not_called()


def test_packed_weights_are_advised_before_they_are_written() -> None:
    layout = WeightLayout((4096,), 4096, 128, 128)
    with mock.patch("qfuse.lowering.cpu.weights.prefer_large_pages") as asked:
        packed, _ = empty_weight(layout)
    asked.assert_called_once_with(packed.data_ptr(), packed.nbytes)
    pages.prefer_large_pages(packed.data_ptr(), packed.nbytes)  # the system takes the wish
    assert packed.fill_(3).eq(3).all()
