"""Tables of measured entries: what they change, when they do not count, and bad ones."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_kernels import TESTED_LEVELS, compiled, loaded, matmul_text, plain, quantized, same_bits
from schemes import quantized_x, simple

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu import entry_table
from qfuse.lowering.cpu.entry_table import VARIABLE, Entry, Table, read_table, signature
from qfuse.lowering.cpu.kernel import Choice, CompiledKernel

pytestmark = pytest.mark.skipif(
    "avx512" not in TESTED_LEVELS, reason="names entries that kernels with AVX-512 have"
)

N, K = 130, 256
TEXT = matmul_text(quantized(-1, K), quantized(N, K, block=(128, 128)), [plain(-1, N)])
ROWS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 64, 100, 128, 129, 600)


@pytest.fixture
def kernel() -> CompiledKernel:
    return compiled(TEXT, "avx512")


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def write(*entries: Entry, **differing: Any) -> None:
        path = tmp_path / "cpu.json"
        table = Table({**signature(2), **differing}, entries)
        path.write_text(json.dumps(table.to_json()))
        monkeypatch.setenv(VARIABLE, str(path))
        entry_table._in_use.cache_clear()

    return write


def entry(kernel: CompiledKernel, first: int, last: int, name: str, rows: int = 8) -> Entry:
    return Entry(kernel.product, first, last, name, rows, {"m": last})


def test_a_product_is_known_by_its_types(kernel: CompiledKernel) -> None:
    assert f"tensor<?x{K}xf8E4M3FN>" in kernel.product and f"parts [{N}]" in kernel.product
    three = compiled(TEXT.replace(f"<?x{K}x", f"<?x?x{K}x").replace(f"<?x{N}x", f"<?x?x{N}x"))
    assert three.product == kernel.product, "any rows of x are rows"


def test_every_entry_computes_the_same_bits(kernel: CompiledKernel) -> None:
    x, w = quantized_x(max(ROWS), K, "f8E4M3FN", 128), simple(N, K, "f8E4M3FN", (128, 128))
    packed = w.packed()
    for m in ROWS:
        found: dict[str, torch.Tensor] = {}
        for each in kernel.entries:
            for rows in {each.rows_multiple, each.whole_rows(m, each.rows)}:
                if not each.can_serve(m):
                    continue
                out = torch.full((m, N), torch.nan, dtype=torch.bfloat16)
                tensors = [*x.rows(m), *packed, out]
                choice = Choice(each, rows)
                loaded(TEXT, "avx512").bind([t.data_ptr() for t in tensors], m, 2, choice=choice)()
                found[f"{each.symbol}/{rows}"] = out
        first, *others = found.values()
        assert all(same_bits(first, other) for other in others), (m, list(found))
        assert bool(first.isfinite().all())
        assert len(found) >= (2 if m > 128 else 3)


def test_a_table_overrides_the_model(kernel: CompiledKernel, use: Callable[..., None]) -> None:
    assert kernel.choose(2, 2).entry.symbol == "run4"
    use(entry(kernel, 2, 4, "run8"), entry(kernel, 200, 512, "run", 64))
    assert kernel.choose(2, 2).entry.symbol == "run8"
    assert kernel.choose(5, 2) == kernel.modelled(5, 2), "other rows are the model's"
    chosen = kernel.choose(512, 2)
    assert (chosen.entry.symbol, chosen.rows) == ("run", 64)
    assert chosen.rows < kernel.modelled(512, 2).rows
    assert kernel.scratch_bytes(512, 2) < kernel.scratch_bytes(512, 2, kernel.modelled(512, 2))
    other = replace(kernel, product="another")
    assert other.choose(2, 2) == other.modelled(2, 2)


def test_an_entry_that_cannot_serve_does_not(
    kernel: CompiledKernel, use: Callable[..., None]
) -> None:
    use(entry(kernel, 1, 64, "run4", 4), entry(kernel, 65, 70, "no such"))
    assert kernel.choose(4, 2).entry.symbol == "run4"
    for m in (5, 64, 66):
        assert kernel.choose(m, 2) == kernel.modelled(m, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("cpu", "another"), ("threads", 64), *((n, "0.1") for n in ("qfuse", "torch", "llvm"))],
)
def test_measurements_of_another_machine_or_version_do_not_count(
    kernel: CompiledKernel,
    use: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: Any,
) -> None:
    use(entry(kernel, 2, 4, "run8"), **{name: value})
    with caplog.at_level(logging.WARNING, logger="qfuse"):
        for _ in range(3):
            assert kernel.choose(2, 2) == kernel.modelled(2, 2)
    (record,) = caplog.records
    assert "is not used" in record.message and f"{name} was {value!r}" in record.message


def test_another_number_of_threads_is_another_machine(
    kernel: CompiledKernel, use: Callable[..., None]
) -> None:
    use(entry(kernel, 2, 4, "run8"))
    assert kernel.choose(2, 2).entry.symbol == "run8"
    assert kernel.choose(2, 1) == kernel.modelled(2, 1)


def test_entries_of_the_same_rows_are_replaced(kernel: CompiledKernel) -> None:
    old = Table(signature(2), (entry(kernel, 2, 4, "run8"), entry(kernel, 9, 16, "run")))
    new = old.with_entry(entry(kernel, 3, 8, "run_units"))
    assert [(e.first_m, e.last_m, e.entry) for e in new.entries] == [
        (9, 16, "run"), (3, 8, "run_units"),
    ]  # fmt: skip


GOOD = {"product": "p", "first_m": 1, "last_m": 1, "entry": "run", "rows": 8, "measured": {}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "has version None; this qfuse reads 1"),
        ('{"version": 7}', "has version 7; this qfuse reads 1"),
        ('{"version": 1}', "it lacks 'signature'"),
        ({**GOOD, "rows": 0}, "rows is 0, not a whole number from 1"),
        ({**GOOD, "entry": None}, "entry is None, not a text"),
        ({**GOOD, "tile": 1}, "'tile' is no field of an entry"),
        ({k: v for k, v in GOOD.items() if k != "entry"}, "it lacks 'entry'"),
        (3, "3 is not an object"),
    ],
)
def test_bad_tables(data: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    if not isinstance(data, str):
        data = json.dumps({"version": 1, "signature": {}, "entries": [data]})
    path.write_text(data)
    with pytest.raises(QfuseError) as raised:
        read_table(path)
    assert words in str(raised.value) and str(path) in str(raised.value)


def test_a_table_that_is_not_there(kernel: CompiledKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/no/table.json")
    with pytest.raises(QfuseError, match=r"cannot read CPU table /no/table\.json"):
        kernel.choose(1, 2)
