"""Autotuning by a clock that knows what is best: what is found, kept, and left for lack of time."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cpu_kernels import TESTED_LEVELS, group_text, matmul_text, parsed, plain, quantized

from qfuse.lowering.cache_file import write_cached
from qfuse.lowering.cpu import autotune, tuned
from qfuse.lowering.cpu.autotune import Found, OutOfTime, Probes, Subject, subject_of, tune
from qfuse.lowering.cpu.cpu import LEVELS
from qfuse.lowering.cpu.tunables import DEFAULTS, SEARCHES, Search, Tunables


def subject(n: int = 4096, k: int = 2048) -> Subject:
    return Subject(quantized(-1, k), quantized(n, k, block=(128, 128)))


class Clock:
    """`Measure`, and the time: each step takes `step` seconds, what is preferred is quicker."""

    def __init__(self, step: float = 0.0, quick: Callable[[Tunables], float] | None = None) -> None:
        self.time, self.step = 100.0, step
        self.quick = quick or (lambda tunables: 1.0)
        self.asked: list[tuple[Subject, int, int]] = []

    def now(self) -> float:
        return self.time

    def __call__(
        self, subject: Subject, search: Search, choices: Sequence[Tunables], end: float
    ) -> list[float]:
        self.asked.append((subject, search.m, len(choices)))
        self.time += self.step
        return [self.quick(choice) for choice in choices]

    def tune(
        self, subjects: Sequence[Subject], known: Mapping[str, Found] | None = None, seconds=2.0
    ) -> tuple[dict[str, Found], list[tuple[Subject, Search]]]:
        return tune(subjects, "avx512", known or {}, self, seconds, self.now)


def far_and_four(tunables: Tunables) -> float:
    """Seconds where 16 KB ahead, and then four strips in tiles, are best."""
    far, strips = tunables.far_bytes == 16384, tunables.tile_strips == 4
    return 1.0 - 0.2 * far - 0.3 * strips


def test_what_is_faster_is_found() -> None:
    clock = Clock(quick=far_and_four)
    found, left = clock.tune([subject()])
    one = found[str(subject())]
    assert one.changes == {"far_bytes": 16384, "tile_strips": 4} and not left
    assert one.measured == {1: (0.8, 1.0), 64: (0.5, 0.8)} and one.is_complete("avx512")
    usual = DEFAULTS["avx512"]
    assert one.apply(usual) == replace(usual, far_bytes=16384, tile_strips=4)


def test_what_is_hardly_faster_is_not_taken() -> None:
    clock = Clock(quick=lambda t: 0.98 if t.far_bytes == 16384 else 1.0)
    assert clock.tune([subject()])[0][str(subject())].changes == {}


def test_what_was_faster_once_only_is_not_taken() -> None:
    """The least of several times is too small by luck: one more comparison decides."""
    clock = Clock()
    clock.quick = lambda t: 0.5 if t.unrolled == 1 and len(clock.asked) == 2 else 1.0
    one = clock.tune([subject()])[0][str(subject())]
    assert one.changes == {} and one.measured[1] == (1.0, 1.0)


def test_what_is_known_is_not_measured() -> None:
    first, second = subject(), subject(k=4096)
    found, _ = Clock(quick=far_and_four).tune([first])
    clock = Clock()
    again, left = clock.tune([first, second], found)
    assert {asked for asked, *_ in clock.asked} == {second} and not left
    assert again[str(first)] == found[str(first)]


@pytest.mark.parametrize("step", [0.05, 0.15, 0.3, 0.7, 1.9])
def test_the_budget_is_kept(step: float) -> None:
    """Whatever a step takes: none begins that would end later, and all that is left is told."""
    subjects = [subject(k=1024 * i) for i in range(1, 9)]
    clock = Clock(step)
    found, left = clock.tune(subjects)
    assert clock.time - 100 <= 2.0
    done = sum(len(one.measured) for one in found.values())
    assert done + len(left) == 2 * len(subjects)
    if step < 1:
        assert str(subjects[0]) in found, "the first in line comes first"
    if step > 0.05:
        assert (subjects[-1], SEARCHES["avx512"][1]) in left


def test_decoding_comes_first() -> None:
    clock = Clock()
    clock.tune([subject(k=1024), subject(k=2048)])
    assert [m for _, m, _ in clock.asked] == sorted(m for _, m, _ in clock.asked)


def test_a_search_that_is_interrupted_leaves_nothing() -> None:
    """What its first list found was not confirmed."""
    clock = Clock(0.5, far_and_four)
    found, left = clock.tune([subject()], seconds=1.2)
    assert found == {} and [search.m for _, search in left] == [1, 64]
    more, left = Clock(0.0, far_and_four).tune([subject()], found)
    assert more[str(subject())].is_complete("avx512") and not left


def test_what_is_measured_stops_in_time() -> None:
    """No more kernels are compiled, and no more rounds begin, when the time has gone."""
    time = iter(range(10**6))
    probes = Probes("generic", 1, lambda: float(next(time)))
    search = SEARCHES["generic"][0]
    with pytest.raises(OutOfTime):
        probes(subject(128, 256), search, [DEFAULTS["generic"]], -1.0)
    assert not probes._made
    with pytest.raises(OutOfTime):
        probes(subject(128, 256), search, [DEFAULTS["generic"]], 3.0)
    assert len(probes._made) == 1 and next(time) < 20


@pytest.mark.parametrize("level", TESTED_LEVELS)
@pytest.mark.parametrize(
    "case",
    [
        subject(192, 256),
        Subject(plain(-1, 256), plain(192, 256)),
        Subject(quantized(-1, 256, dtype="i8"), quantized(130, 256, block=(1, 256), dtype="i8")),
    ],
)
def test_every_search_is_measured(level: str, case: Subject, monkeypatch: Any) -> None:
    """Each candidate is compiled and run, on weights that lie apart."""
    monkeypatch.setattr(autotune, "_memory_bytes", lambda: 1 << 20)
    probes = Probes(level, 2)
    for search in SEARCHES[level]:
        usual = case.defaults(level)
        for number in range(len(search.lists)):
            choices = [usual, *search.alternatives(usual, number)]
            times = probes(case, search, choices, float("inf"))
            assert len(times) == len(choices) and min(times) > 0
    assert all(len(calls) > 2 for calls in probes._made.values())


def subject_in(text: str) -> Subject | None:
    with parsed(text) as kernel:
        return subject_of(next(iter(kernel.entry_block.operations)).operation)


def test_products_that_differ_in_columns_are_measured_once() -> None:
    x, result = quantized(-1, 4096), plain(-1, 12288)
    wide, wider = (quantized(n, 4096, block=(128, 128)) for n in (12288, 16384))
    found = subject_in(matmul_text(x, wide, [result]))
    assert found is not None and found.w.shape == (4096, 4096)
    halves = matmul_text(x, wider, [plain(-1, 8192)] * 2, "", ["%acc0", "%acc1"], (), [8192, 8192])
    assert subject_in(halves) == found
    experts = quantized(8, 12288, 4096, block=(128, 128))
    assert subject_in(group_text(x, experts, [result])) == found
    assert subject_in(matmul_text(plain(-1, 4096), wide, [result])) != found


def test_small_products_are_not_measured() -> None:
    x, w = quantized(-1, 1024), quantized(512, 1024, block=(128, 128))
    assert subject_in(matmul_text(x, w, [plain(-1, 512)])) is None


FOUND = {"a": Found({"prefetch_bytes": 8192, "tile_rows": [4, 2]}, {1: (0.8, 1.0)})}


@pytest.mark.parametrize("level", LEVELS)
def test_what_was_found_is_kept(tmp_path: Path, level: str) -> None:
    signature = tuned.signature(level, 2)
    assert {"cpu", "threads", "qfuse", "torch", "llvm", "level", "kernels"} == set(signature)
    assert tuned.read(tmp_path, signature) == {}
    tuned.write(tmp_path, signature, FOUND)
    assert tuned.read(tmp_path, signature) == FOUND
    other = {"b": Found({}, {1: (1.0, 1.0)})}
    tuned.write(tmp_path, signature, other)
    assert tuned.read(tmp_path, signature) == FOUND | other, "what others found stays"
    assert [path.suffix for path in tmp_path.iterdir()] == [".tuned"]


@pytest.mark.parametrize("name", ["cpu", "threads", "qfuse", "torch", "llvm", "level", "kernels"])
def test_of_another_machine_or_version_nothing_is_known(tmp_path: Path, name: str) -> None:
    signature = tuned.signature("avx512", 2)
    tuned.write(tmp_path, signature, FOUND)
    other = {**signature, name: "generic" if name == "level" else "another"}
    assert tuned.read(tmp_path, other) == {}


@pytest.mark.parametrize(
    "products",
    [
        {"a": {"changes": {"tile_strips": 3}, "measured": {}}},
        {"a": {"changes": {"unrolled": "x"}, "measured": {}}},
        {"a": {"changes": {}, "measured": {"one": [1, 2]}}},
        {"a": {"changes": {}}},
        [],
    ],
)
def test_nonsense_is_not_there(tmp_path: Path, products: Any) -> None:
    signature = tuned.signature("avx512", 2)
    tuned.write(tmp_path, signature, FOUND)
    (path,) = tmp_path.iterdir()
    write_cached(path, {"signature": signature, "products": products}, b"")
    assert tuned.read(tmp_path, signature) == {}


def test_a_damaged_or_unwritable_file_is_no_error(tmp_path: Path) -> None:
    signature = tuned.signature("avx512", 2)
    tuned.write(tmp_path, signature, FOUND)
    (path,) = tmp_path.iterdir()
    for damaged in (b"", path.read_bytes()[:-5], json.dumps({}).encode()):
        path.write_bytes(damaged)
        assert tuned.read(tmp_path, signature) == {}
    (tmp_path / "file").write_text("")
    tuned.write(tmp_path / "file" / "below", signature, FOUND)
    assert tuned.read(tmp_path / "file" / "below", signature) == {}
    assert tuned.read(None, signature) == {}
