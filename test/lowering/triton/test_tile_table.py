"""Tables of measured tiles: what they say is done, and what is wrong with one is said."""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gpu_kernels import (
    assert_close,
    dequantized,
    matmul_text,
    parsed,
    plain,
    quantized,
    random_codes,
    run_launch,
)

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.measured_call import MeasuredCall
from qfuse.lowering.triton import gpu_signature, tile_table
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.interpreter import Buffer
from qfuse.lowering.triton.kernel import TritonKernel
from qfuse.lowering.triton.lower import lower_kernel
from qfuse.lowering.triton.problem import Problem, read_problem
from qfuse.lowering.triton.product import read_product
from qfuse.lowering.triton.signature import read_signature
from qfuse.lowering.triton.tile_entry import Entry, about, entry_for, key_of
from qfuse.lowering.triton.tile_table import (
    SHIPPED,
    VARIABLE,
    Table,
    active_table,
    parse_table,
    read_table,
    using,
)
from qfuse.lowering.triton.tiles import Config

SM_90 = find_gpu("cuda:sm_90")
X, W, OUT = quantized(-1, 512), quantized(256, 512, block=(128, 128)), plain(-1, 256)
TEXT = matmul_text(X, W, [OUT])


def problem() -> Problem:
    with parsed(TEXT) as function:
        product = read_product(read_signature(function))
        return read_problem(product, product.groups[0], SM_90)


def lower(table: Table) -> TritonKernel:
    with using(table), parsed(TEXT) as function:
        return lower_kernel(function, SM_90)


def entry(first: int, last: int | None, **config: Any) -> Entry:
    values = {"rows": 64, "columns": 64, "depth": 128, **config}
    return entry_for(problem(), SM_90, (first, last), Config(**values), {"gpu": "none"})


def as_json(*entries: Entry) -> dict[str, Any]:
    return json.loads(json.dumps(Table(entries).to_json()))


HERE = {
    "target": "cuda:sm_90",
    "gpu": "NVIDIA H100 80GB HBM3",
    "driver": "13.0",
    "torch": "2.13.0+cu130",
    "library": "13.1.0.3",
    "triton": "3.9.0",
}


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with that GPU and those versions."""
    gpu = SimpleNamespace(device=lambda: 0, arch=lambda device: "sm_90", version=lambda: "13.0")
    monkeypatch.setattr(gpu_signature, "driver_for", lambda kind: gpu)
    monkeypatch.setattr(gpu_signature, "gpu_error", lambda kind: None)
    monkeypatch.setattr(gpu_signature, "arch_of", lambda: "sm_90")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: HERE["gpu"])
    monkeypatch.setattr(torch, "__version__", HERE["torch"])
    versions = {"triton": HERE["triton"], "nvidia-cublas": HERE["library"]}
    monkeypatch.setattr(gpu_signature, "version_of", lambda name: versions.get(name, ""))


def written(path: Path, **changes: str | None) -> Path:
    """A table of one entry, signed as HERE but for some fields."""
    signature = {k: v for k, v in (HERE | changes).items() if v is not None}
    table = Table((entry(1, 64, num_stages=2),), (), signature)
    path.write_text(json.dumps(table.to_json()))
    return path


@pytest.mark.usefixtures("h100")
def test_what_a_table_is_signed_by() -> None:
    assert gpu_signature.signature("cuda:sm_90") == HERE
    with pytest.raises(QfuseError, match="nothing can be measured for cuda:sm_80: the code is"):
        gpu_signature.signature("cuda:sm_80")


@pytest.mark.usefixtures("h100")
@pytest.mark.parametrize("name", [n for n in HERE if n != "target"])
def test_a_table_measured_with_something_else_is_not_used(
    name: str, tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A remark, once, says which field differs and how to make a new one."""
    path = written(tmp_path / f"{name}.json", **{name: "another"})
    monkeypatch.setenv(VARIABLE, str(path))
    with caplog.at_level(logging.WARNING, logger="qfuse"):
        found = [active_table().find(problem(), SM_90, 7) for _ in range(2)]
    assert found == [None, None]
    (record,) = caplog.records
    assert f"tile table {path} is not used" in record.message
    assert f"{name} was 'another' when it was measured, and is '{HERE[name]}'" in record.message
    assert "qfuse tune --target cuda:sm_90 --table FILE" in record.message


@pytest.mark.usefixtures("h100")
def test_a_table_measured_here_is_used(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv(VARIABLE, str(written(tmp_path / "t.json")))
    assert active_table().find(problem(), SM_90, 7) == entry(1, 64, num_stages=2)
    assert not caplog.records


@pytest.mark.parametrize("torch_is_there", [True, False])
def test_without_the_gpu_triton_alone_counts(
    torch_is_there: bool, tmp_path: Path, monkeypatch, caplog
) -> None:
    """Compiled for another machine, whose table somebody named."""
    monkeypatch.setattr(gpu_signature, "gpu_error", lambda kind: "there is none")
    if not torch_is_there:
        monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(gpu_signature, "version_of", lambda name: "3.9.0")
    path = written(tmp_path / "t.json", gpu="NVIDIA H200", driver="12.8")
    monkeypatch.setenv(VARIABLE, str(path))
    assert active_table().find(problem(), SM_90, 7) is not None
    monkeypatch.setattr(gpu_signature, "version_of", lambda name: "3.6.0")
    tile_table._remark_unused.cache_clear()
    assert active_table().find(problem(), SM_90, 7) is None
    assert "triton was '3.9.0' when it was measured, and is '3.6.0'" in caplog.text


def call(first: int, last: int | None, theirs: float) -> MeasuredCall:
    rows = about(problem(), SM_90, (first, last))
    return MeasuredCall(**rows, call="scaled_mm_blocks", m=(first,), ours=(2e-4,), theirs=(theirs,))


def test_calls_are_kept_beside_tiles() -> None:
    table = Table((entry(1, 64),)).with_call(call(2, 16, 3e-4)).with_call(call(17, 64, 1e-4))
    table = table.with_call(call(2, 16, 2e-4))
    assert parse_table(json.loads(json.dumps(table.to_json())), "t") == table
    assert [c.theirs for c in table.calls_of(problem(), SM_90)] == [(2e-4,), (1e-4,)]
    assert not table.calls_of(replace(problem(), n=1), SM_90)
    assert table.entries == (entry(1, 64),)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"call": 3}, "call is 3, not a text"),
        ({"m": []}, r"m is \[\], not a list of numbers"),
        ({"m": [0]}, "m is 0, not a whole number from 1"),
        ({"theirs": ["fast"]}, "'fast' is no number of seconds"),
        ({"theirs": [0.0]}, "0.0 is no number of seconds"),
        ({"m": [2, 3]}, "m, ours and theirs differ in length"),
        ({"colour": "red"}, "'colour' is no field"),
    ],
)
def test_a_bad_call_is_named(changes: dict[str, Any], words: str) -> None:
    data = json.loads(json.dumps(Table().with_call(call(2, 16, 1e-4)).to_json()))
    data["calls"][0] |= changes
    with pytest.raises(QfuseError, match=f"tile table t, call 0: {words}"):
        parse_table(data, "t")


def test_the_key_of_a_problem() -> None:
    found = problem()
    assert found.scheme == "1x128,128x128,-"
    assert key_of(found, SM_90) == (
        "cuda:sm_90", 256, 512, 1, "f8E4M3FN", "f8E4M3FN", "1x128,128x128,-", ("bf16",),
    )  # fmt: skip


def test_a_table_survives_json() -> None:
    table = Table((entry(1, 16, rows=16, swap=True, slices=2), entry(17, None, num_warps=8)))
    assert parse_table(json.loads(json.dumps(table.to_json())), "t") == table


def test_the_shipped_table_is_whole() -> None:
    """Nothing in it was measured by anything but `qfuse tune`, which says where."""
    for found in read_table(SHIPPED).entries:
        assert {"gpu", "date", "seconds"} <= set(found.measured), found.title


def test_kernels_are_built_by_the_table() -> None:
    """A range of its own, cut out of those of the model; outside, the model decides."""
    table = Table((entry(100, 200, rows=128, columns=32, num_warps=8, num_stages=2),))
    usual, tuned = lower(Table()), lower(table)
    (launch,) = tuned.variant(150).launches
    assert launch.name == "k_tile128x32" and (launch.num_warps, launch.num_stages) == (8, 2)
    assert tuned.variant(150) == tuned.variant(100) == tuned.variant(200)
    for m in (1, 99, 201, 5000):
        assert tuned.variant(m).launches == usual.variant(m).launches


def test_tiles_that_are_called_alike_get_two_names() -> None:
    table = Table((entry(1, 100, num_stages=2), entry(101, 200, num_stages=3)))
    kernel = lower(table)
    launches = [kernel.variant(m).launches[0] for m in (1, 101)]
    assert [x.name for x in launches] == ["k_tile64x64", "k_tile64x64v2"]
    names = {x.name: x for v in kernel.variants for x in v.launches}
    assert all(names[x.name] == x for v in kernel.variants for x in v.launches)


def test_a_tuned_kernel_computes_the_same() -> None:
    codes = [random_codes(X, 40, 0), random_codes(W, 256, 1)]
    kernel = lower(Table((entry(33, 64, slices=2, num_stages=2),)))
    variant = kernel.variant(40)
    memory: dict[tuple[str, int, str], Any] = {("result", 0, "data"): Buffer((40, 256), "bf16")}
    for i, (data, scale) in enumerate(codes):
        memory["operand", i, "data"], memory["operand", i, "scale"] = data, scale
    memory["scratch", 0, "data"] = Buffer(variant.scratch_per_row * 40 // 4, "f32")
    memory["counter", 0, "data"] = np.zeros(variant.counter_bytes // 4, np.int32)
    run_launch(variant.launches[0], memory, 40, "cuda:sm_90")
    expected = dequantized(codes[0], X) @ dequantized(codes[1], W).T
    assert_close(memory["result", 0, "data"].array, expected, "bf16")


def test_your_own_table_precedes_the_shipped_one(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "own.json"
    mine = entry(1, 64, num_stages=2)
    path.write_text(json.dumps(as_json(mine)))
    monkeypatch.setenv(VARIABLE, str(path))
    assert active_table().find(problem(), SM_90, 7) == mine
    assert active_table().entries[1:] == read_table(SHIPPED).entries
    path.write_text(json.dumps(as_json(replace(mine, config=replace(mine.config, rows=128)))))
    found = active_table().find(problem(), SM_90, 7)
    assert found is not None and found.config.rows == 128, "a changed file is read again"
    monkeypatch.setenv(VARIABLE, str(tmp_path / "missing.json"))
    with pytest.raises(QfuseError, match=r"cannot read tile table .*missing\.json: No such file"):
        active_table()


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ((1, 100), (1, 100), []),
        ((1, 100), (20, 30), [(1, 19), (31, 100)]),
        ((1, None), (20, 30), [(1, 19), (31, None)]),
        ((50, 100), (1, 60), [(61, 100)]),
        ((50, 100), (60, None), [(50, 59)]),
        ((50, 100), (101, 200), [(50, 100)]),
        ((50, None), (1, 49), [(50, None)]),
    ],
)
def test_a_new_entry_takes_the_place_of_others(old, new, kept) -> None:
    before, after = entry(*old), entry(*new, num_stages=2)
    table = Table((before,)).with_entry(after)
    assert after in table.entries
    rest = [(e.first_m, e.last_m) for e in table.entries if e != after]
    assert rest == kept
    assert parse_table(as_json(*table.entries), "t") == table, "no two overlap"


def damaged(**changes: Any) -> dict[str, Any]:
    data = as_json(entry(1, 16, rows=16, swap=True))
    for name, value in changes.items():
        place = data["entries"][0]
        *outer, inner = name.split("__")
        for part in outer:
            place = place[part]
        if value is None and inner != "last_m":
            del place[inner]
        else:
            place[inner] = value
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "tile table t is not an object with a list of entries"),
        ({"version": 9, "entries": []}, "has version 9; this qfuse reads 2"),
        ({"version": 2, "entries": [3]}, "entry 0: 3 is not an object"),
        (damaged(n=None), "entry 0: it lacks 'n'"),
        (damaged(colour="red"), "'colour' is no field of an entry"),
        (damaged(target="cuda:sm_91"), "target 'cuda:sm_91' is not one of"),
        (damaged(k=0), "k is 0, not a whole number from 1"),
        (damaged(k=True), "k is True, not a whole number from 1"),
        (damaged(first_m=20), "last_m 16 comes before first_m 20"),
        (damaged(scheme=3), "scheme is 3, not a text"),
        (damaged(results="bf16"), "results are 'bf16', not a list"),
        (damaged(measured=[]), "measured is [], not an object"),
        (damaged(config=[]), "config is [], not an object"),
        (damaged(config__edition=1), "'edition' is no field of a config"),
        (damaged(config__rows=48, config__swap=False), "rows is 48, not a power of two"),
        (damaged(config__columns=8), "a tile has 16 rows and columns at least"),
        (damaged(config__swap=1), "swap is 1, not true or false"),
        (damaged(config__num_stages=9), "more than 8 stages"),
        (damaged(config__persistent=True), "swap, gemv and persistent exclude each other"),
        (damaged(last_m=17), "a tile with weights first holds all rows, and has 16"),
        (damaged(last_m=None, config__swap=False, config__slices=2), "K can only be split"),
        (damaged(config__swap=False, config__gemv=True), "serves one row"),
    ],
)
def test_a_bad_entry_is_named(data: Any, words: str) -> None:
    with pytest.raises(QfuseError) as caught:
        parse_table(data, "t")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("tile table t")


def test_two_entries_for_one_number_of_rows() -> None:
    with pytest.raises(QfuseError, match=r"entry 1 \(.*M 10\.\.20\): .*M 1\.\.16 is there already"):
        parse_table(as_json(entry(1, 16), entry(10, 20)), "t")


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text("{")
    with pytest.raises(QfuseError, match=r"tile table .*t\.json is not JSON"):
        read_table(path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"depth": 64}, "a step is 128 elements of K"),
        ({"rows": 128, "columns": 256, "num_stages": 8}, "bytes of shared memory"),
        (
            {"rows": 128, "columns": 128, "persistent": True, "num_warps": 8},
            "kernel that is written for 4",
        ),
        ({"rows": 64, "persistent": True}, "makes tiles of 128 by 128"),
    ],
)
def test_tiles_that_there_is_no_kernel_for(config: dict[str, Any], words: str) -> None:
    with pytest.raises(QfuseError) as caught:
        lower(Table((entry(1, 16, **config),)))
    assert words in str(caught.value) and "N x K = 256 x 512" in str(caught.value)
