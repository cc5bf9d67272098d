"""What benchmarks of products on a CPU measure: weights and activations, we and our peers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from cpu_bench import kernels, schemes

from qfuse.dialects.errors import QfuseError
from qfuse.tools.bench import cpu_iree, cpu_linear, cpu_rowwise
from qfuse.tools.bench.cases import error_of
from qfuse.tools.bench.cpu_iree import Iree
from qfuse.tools.bench.cpu_peers import Bf16, Compiled, Dequantize, Int4Pack, Int8Pack, IntMm
from qfuse.tools.bench.cpu_rowwise import RowCase
from qfuse.tools.bench.cpu_schemes import (
    SCHEMES,
    CpuScheme,
    Weight,
    make_activations,
    parse_schemes,
)
from qfuse.tools.qfuse import main

pytestmark = pytest.mark.usefixtures("small")


def test_schemes_by_name() -> None:
    assert [s.name for s in parse_schemes(None)] == list(SCHEMES)
    assert [s.name for s in parse_schemes("q4_k, fp8")] == ["q4_k", "fp8"]
    assert [s.name for s in parse_schemes("q4_0")] == ["int4"]
    with pytest.raises(QfuseError, match="scheme 'fp4' is unknown; use fp8, fp8-a16, int8"):
        parse_schemes("fp8,fp4")


@schemes
def test_products_are_as_large_as_x(scheme: CpuScheme) -> None:
    weight, x = Weight(scheme, 192, 512), make_activations(scheme, 64, 512)
    assert 0.8 < float((x.values @ weight.values.T).std()) < 1.25
    assert float((x.values - x.x.float()).norm() / x.x.float().norm()) < 0.03
    again = Weight(scheme, 192, 512)
    assert len(again.components) == (1 if scheme.w is None else 2)
    for a, b in zip(again.components, weight.components, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_copies_lie_apart() -> None:
    weight = Weight(SCHEMES["fp8"], 128, 128)
    for form in (weight.dense, weight.packed[0], weight.stored[1]):
        assert len({t.data_ptr() for t in form}) == 2 and torch.equal(
            form[0].view(torch.uint8), form[1].view(torch.uint8)
        )


def test_blocks_have_to_be_full() -> None:
    assert not SCHEMES["q4_k"].fits(896) and SCHEMES["int4"].fits(896)
    with pytest.raises(QfuseError, match="q4_k has blocks of 256 columns; 896 are no multiple"):
        Weight(SCHEMES["q4_k"], 64, 896)


def test_schemes_differ_in_x_only_where_they_say() -> None:
    pairs = ("fp8", "fp8-a16"), ("int4", "int4-a16"), ("int4-g128", "int4-g128-a16")
    for a, b in pairs:
        assert replace(SCHEMES[a], name=b, x=None) == SCHEMES[b]


@schemes
@pytest.mark.parametrize("m", [1, 9, 17])
def test_ours(scheme: CpuScheme, m: int) -> None:
    weight, x = Weight(scheme, 70, 512), make_activations(scheme, m, 512)
    made = cpu_linear.Ours(kernels()).prepare(weight, x)
    for call in made.calls:
        call()
    for result in made.results():
        assert error_of(result, x.values @ weight.values.T) < 5e-3


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        (Bf16(), list(SCHEMES)),
        (Dequantize(), [name for name in SCHEMES if name != "bf16"]),
        (IntMm(), ["int8"]),
        (Int8Pack(), ["int8"]),
        (Int4Pack(), [name for name in SCHEMES if name.startswith("int4")]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_torch(subject: Any, names: Sequence[str]) -> None:
    for scheme in SCHEMES.values():
        weight, x = Weight(scheme, 128, 512), make_activations(scheme, 32, 512)
        if scheme.name in names:
            error = error_of(subject.prepare(weight, x).first_result(), x.values @ weight.values.T)
            assert 0 < error <= subject.tolerance
        else:
            says = f"serves {' and '.join(names)} only"
            if subject.name == "torch dequantize":
                says = "is given quantized weights only"
            with pytest.raises(QfuseError, match=says):
                subject.prepare(weight, x)


def test_torch_compile_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = Weight(SCHEMES["fp8"], 64, 128), make_activations(SCHEMES["fp8"], 2, 128)
    with pytest.raises(QfuseError, match="not asked for; --compile does"):
        Compiled(False).prepare(weight, x)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    assert error_of(Compiled(True).prepare(weight, x).first_result(), x.x.float() @ weight.values.T)


@pytest.mark.parametrize("name", ["fp8", "fp8-a16", "int8", "q8_0", "int4", "int4-g128", "bf16"])
def test_iree(name: str) -> None:
    pytest.importorskip("iree.compiler")
    weight, x = Weight(SCHEMES[name], 128, 256), make_activations(SCHEMES[name], 3, 256)
    made = Iree().prepare(weight, x)
    assert error_of(made.first_result(), x.values @ weight.values.T) <= Iree().tolerance


def test_iree_says_what_it_does_not_serve() -> None:
    pytest.importorskip("iree.compiler")
    for name, n, says in (("q4_k", 128, "is given fp8, int8, "), ("fp8", 70, "whole blocks only")):
        with pytest.raises(QfuseError, match=says):
            weight = Weight(SCHEMES[name], n, 256)
            Iree().prepare(weight, make_activations(SCHEMES[name], 1, 256))


def test_iree_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weight, x = Weight(SCHEMES["fp8"], 128, 128), make_activations(SCHEMES["fp8"], 1, 128)
    with pytest.raises(QfuseError, match="not asked for; --iree does"):
        Iree(False).prepare(weight, x)
    monkeypatch.setattr(cpu_iree, "find_spec", lambda name: None)
    assert main(["bench", "--suite", "cpu-linear", "--iree"]) == 1
    assert capsys.readouterr().err.endswith("pip install 'qfuse[bench]' does\n")


@pytest.mark.parametrize("name", ["fp8", "int8", "q8_0"])
@pytest.mark.parametrize("norm", [True, False])
def test_rows(name: str, norm: bool) -> None:
    case = RowCase(SCHEMES[name], 256, norm)
    x = make_activations(case.scheme, 5, 256).x
    weight = torch.linspace(0.5, 1.5, 256).bfloat16()
    operands = [x, weight] if norm else [x]
    expected = case.values(*case.compute(*operands))
    ours = cpu_rowwise.Ours(kernels()).prepare(case, [operands])
    eager = cpu_rowwise.Torch("torch eager", lambda f: f).prepare(case, [operands])
    assert error_of(ours.first_result(), expected) <= 1e-2
    assert torch.equal(eager.first_result(), expected)
    plain = error_of(expected, x.float())
    assert plain > 0.1 if norm else plain < 0.03
