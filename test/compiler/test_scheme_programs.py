"""Weights of every scheme from parameters to results: packed, joined, saved, quantized for."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from programs import Program, Value
from schemes import Operand, int4, mxfp4, q4_0, q4_k, q6_k, q8_0, simple

from qfuse.compiler.compilation import compile_imported
from qfuse.compiler.frontend.imported import Imported
from qfuse.compiler.options import FUSIONS, CompileOptions
from qfuse.compiler.runtime.executable import Executable
from qfuse.dialects.bindings import ir
from qfuse.dialects.glu import Glu
from qfuse.dialects.registry import load_all
from qfuse.dialects.types import Scheme, Shaped

N, K = 200, 256
"""N is no multiple of a block's rows or of a vector, and more than a tile's columns."""

E4M3, E5M2, BLOCKS = "f8E4M3FN", "f8E5M2", (128, 128)
WEIGHTS: dict[str, Callable[[int], Operand]] = {
    "e4m3 blocks": lambda seed: simple(N, K, E4M3, BLOCKS, seed=seed),
    "e4m3 blocks of e8m0": lambda seed: simple(N, K, E4M3, BLOCKS, "f8E8M0FNU", seed=seed),
    "e4m3 channel": lambda seed: simple(N, K, E4M3, (1, 0), seed=seed),
    "e4m3 channel, static": lambda seed: simple(N, K, E4M3, (1, 0), seed=seed),
    "e5m2 channel": lambda seed: simple(N, K, E5M2, (1, 0), seed=seed),
    "i8 channel": lambda seed: simple(N, K, "i8", (1, 0), "bf16", seed=seed),
    "i8 channel, W8A16": lambda seed: simple(N, K, "i8", (1, 0), "bf16", seed=seed),
    "int4 per 32": lambda seed: int4(N, K, 32, "bf16", seed=seed),
    "int4 per 64": lambda seed: int4(N, K, 64, "f16", seed=seed),
    "int4 per 128": lambda seed: int4(N, K, 128, "bf16", seed=seed),
    "int4 per 32, zeros": lambda seed: int4(N, K, 32, "bf16", zeros=True, seed=seed),
    "int4 per 128, zeros": lambda seed: int4(N, K, 128, "f16", zeros=True, seed=seed),
    "int4 per 32, W4A8": lambda seed: int4(N, K, 32, "f16", seed=seed),
    "q8_0": lambda seed: q8_0(N, K, seed),
    "q4_0": lambda seed: q4_0(N, K, seed),
    "q4_k": lambda seed: q4_k(N, K, seed),
    "q6_k": lambda seed: q6_k(N, K, seed),
    "mxfp4": lambda seed: mxfp4(N, K, seed),
    "e4m3 blocks of e8m0, plain x": lambda seed: simple(N, K, E4M3, BLOCKS, "f8E8M0FNU", seed),
    "q6_k, plain x": lambda seed: q6_k(N, K, seed),
}

GROUPS = (E4M3, 128, "f32", "none")
E8M0_GROUPS = (E4M3, 128, "f8E8M0FNU", "none")
TOKEN = (E4M3, 0, "f32", "none")
I8_TOKEN = ("i8", 0, "f32", "none")
Q8_1 = ("i8", 32, "f16", "q8_1")
X_SCHEMES = {
    "e4m3 blocks": GROUPS,
    "e4m3 blocks of e8m0": E8M0_GROUPS,
    "e4m3 channel": TOKEN,
    "e4m3 channel, static": TOKEN,
    "e5m2 channel": TOKEN,
    "i8 channel": I8_TOKEN,
    "int4 per 32, W4A8": Q8_1,
    "q8_0": Q8_1,
    "q4_0": Q8_1,
    "q4_k": Q8_1,
    "q6_k": Q8_1,
}
"""What x is quantized to: type, columns of a scale (0: all), its type, packing; elsewhere it stays
plain."""


def quantize(p: Program, x: Value, name: str) -> Value:
    """`x` as products by weights of the scheme `name` read it."""
    if name not in X_SCHEMES:
        return x
    storage, group, scale, packing = X_SCHEMES[name]
    scheme = Scheme((1, group or x.type.shape[-1]), scale, packing)
    given = []
    if name.endswith("static"):
        given.append(p.parameter(1, dtype="f32"))
        p.parameters[given[0].name] = torch.tensor([0.02])
    type_ = Shaped(x.type.shape, storage, scheme)
    return p._op("quantize", [x, *given], [type_], lambda v, *_: v)[0]


def pack(p: Program, w: Operand) -> Value:
    """A weight as the program's parameters."""
    components = [
        p._argument("parameter", c.shape, str(dtype))
        for c, dtype in zip(w.components, component_types(w.type), strict=True)
    ]
    p.parameters |= {v.name: c for v, c in zip(components, w.components, strict=True)}
    return p._op("pack", components, [w.type], lambda *tensors: w.values)[0]


def component_types(type_: Shaped) -> list[str]:
    assert type_.scheme is not None
    zeros = ["i8"] if type_.scheme.zero_point != "none" else []
    return [type_.data_dtype, type_.scheme.scale, *zeros]


def gate_up(name: str) -> tuple[Program, Value]:
    """silu(x gate) * (x up) of two weights of one scheme."""
    p = Program()
    x = quantize(p, p.input(-1, K), name)
    gate, up = (p.matmul(x, pack(p, WEIGHTS[name](seed))) for seed in (1, 2))
    return p, p.glu(Glu("silu"), gate, up)


JOINED = ["e4m3 channel", "i8 channel", "q8_0", "int4 per 32, zeros", "q4_k", "mxfp4"]


@pytest.mark.parametrize("name", [*JOINED, "e4m3 blocks of e8m0, plain x", "q6_k, plain x"])
def test_joined_is_the_same(name: str, tmp_path: Path) -> None:
    """Gate and up as one product, before and after a file, against two products."""
    p, y = gate_up(name)
    apart, joined = p.compile([y], []), p.compile([y], FUSIONS)
    (prepare,) = joined.program.plan.prepares
    components = len(component_types(WEIGHTS[name](1).type))
    assert [len(part) for part in prepare.parts] == [components] * 2
    sizes = [exe.program.sizes()["weight_bytes"] for exe in (apart, joined)]
    assert sizes[0] == sizes[1]
    joined.save(tmp_path / "model.qfuse")
    again = Executable.load(tmp_path / "model.qfuse")
    assert again.program.plan == joined.program.plan
    for m in (1, 4, 9):
        (x,) = p.inputs(m)
        wanted = apart(x)[0]
        assert wanted.abs().max() > 0
        assert torch.equal(joined(x)[0], wanted) and torch.equal(again(x)[0], wanted)
        (exact,) = p.reference([y], [x])  # of x as it is before it is quantized
        if name not in X_SCHEMES:
            assert torch.allclose(wanted.double(), exact, rtol=2e-2, atol=1e-2 * exact.abs().max())
        else:  # codes of x have 2^-3 of a value at most between them, so errors of 2^-5 on average
            assert (wanted.double() - exact).norm() <= 0.08 * exact.norm()


@pytest.mark.parametrize("storage", ["f8E4M3FN", "i8"])
def test_one_scale_for_all_of_x(storage: str) -> None:
    """Found first, then given: the scale of a whole tensor, also of one without rows."""
    p = Program()
    x = p.input(-1, K)
    scale_type = Shaped((1,), "f32")
    scale = p._op("tensor_scale", [x], [scale_type], lambda v: v, f"storage = {storage}")[0]
    type_ = Shaped(x.type.shape, storage, Scheme((1, K), "f32"))
    q = p._op("quantize", [x, scale], [type_], lambda v, s: v)[0]
    y = p.matmul(q, pack(p, WEIGHTS[f"{'i8' if storage == 'i8' else 'e4m3'} channel"](1)))
    exe = p.compile([y], FUSIONS)
    for m in (0, 1, 9):
        (x,) = p.inputs(m)
        (got,) = exe(x)
        (exact,) = p.reference([y], [x])
        assert got.shape == (m, N)
        if m:
            assert (got.double() - exact).abs().max() <= 0.05 * exact.abs().max()


class Watched(Mapping[str, torch.Tensor]):
    """Parameters that are made when they are read, as those of a file, and who holds them."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.reads: Counter[str] = Counter()
        self.held: list[weakref.ref[torch.Tensor]] = []

    def __getitem__(self, name: str) -> torch.Tensor:
        self.reads[name] += 1
        made = self.tensors[name].clone()
        self.held.append(weakref.ref(made))
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def bytes_held(self) -> int:
        return sum(tensor.nbytes for ref in self.held if (tensor := ref()) is not None)


@pytest.mark.parametrize("name", ["e4m3 blocks", "int4 per 32, zeros", "q4_k"])
def test_weights_are_merged_once(name: str) -> None:
    """Each is read once, when its product's weight is made, and dropped before the next one is."""
    p = Program()
    outputs = []
    for seed in range(0, 6, 2):
        x = quantize(p, p.input(-1, K), name)
        gate, up = (p.matmul(x, pack(p, WEIGHTS[name](seed + side))) for side in range(2))
        outputs.append(p.glu(Glu("silu"), gate, up))
    with ir.Context():
        load_all()
        module = ir.Module.parse(p.text(outputs))
    watched, held = Watched(p.parameters), []

    def progress(phase: str, _done: int, _total: int) -> None:
        if phase == "weights":
            held.append(watched.bytes_held())

    imported = Imported(module, watched, (), ())
    program = compile_imported(imported, CompileOptions.make("cpu"), progress).program
    total = sum(tensor.nbytes for tensor in p.parameters.values())
    assert set(watched.reads.values()) == {1} and len(watched.reads) == len(p.parameters)
    assert len(held) == 3 and max(held) <= total / 3
    assert watched.bytes_held() == 0
    apart = p.compile(outputs, []).program
    assert program.sizes()["weight_bytes"] == apart.sizes()["weight_bytes"]
