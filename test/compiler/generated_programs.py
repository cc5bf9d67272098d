"""Legal programs of the dialect, drawn at random: what the passes may meet.

A program has a few activations of equal rows.  Each step reads some that are there and makes new
ones, so chains, diamonds and values with several readers come about by themselves; the steps that
passes look for (gate and up, QKV, norms with residuals, experts) are written out, together with
their look-alikes.  Widths and blocks are few and small, so that programs share kernels; widths are
ragged against blocks on purpose.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st
from programs import ACTIVATIONS, Program, Value

from qfuse.dialects.elementwise_ops import ACTIVATIONS as ACTS
from qfuse.dialects.types import Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC, round_up

HIDDEN, WIDTHS = 40, (40, 24, 72)
EXPERTS, CHOICES = 5, 2
BLOCKS = ((32, 32), (128, 128), (16, 64))

CPU_STORES = ("f8E4M3FN", "f8E5M2", "plain")
OTHER_STORES = ("i8", "e8m0")
"""Weights that only the reference multiplies: int8, FP8 with scales of powers of two."""

FORMATS = (
    ("f8E4M3FN", 16, "f32", "none"),
    ("f8E4M3FN", 0, "f32", "none"),
    ("f8E4M3FN", 32, "f8E8M0FNU", "none"),
    ("i8", 0, "f32", "none"),
    ("i8", 32, "f16", "q8_1"),
)
"""Formats of activations: stored type, group (0: a whole row), type of scales, packing."""

assert set(ACTS) == set(ACTIVATIONS)


@dataclass(frozen=True)
class Case:
    """A program as text, what it consists of, and whether the CPU has kernels for all of it."""

    text: str
    on_cpu: bool
    steps: tuple[str, ...]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How hypothesis prints a program that fails: as a file for `qfuse-opt`."""
        printer.text(f"\n// {', '.join(self.steps)}\n{self.text}\n")


class Writer(Program):
    """A program under construction; `draw` decides."""

    def __init__(self, draw: st.DrawFn, rows: tuple[int, ...], store: str) -> None:
        super().__init__(draw(st.sampled_from(["bf16", "bf16", "f16", "f32"])))
        self.draw, self.rows, self.store = draw, rows, store
        self.block = draw(st.sampled_from(BLOCKS))
        self.values = [self.input(*rows, HIDDEN)]
        self.scales: list[Value] = []

    def choose(self, *options):
        return self.draw(st.sampled_from(options))

    def maybe(self) -> bool:
        return self.draw(st.booleans())

    def some(self, like: Value | None = None) -> Value:
        """An activation that is there, or a new input, of the type of `like`."""
        found = [v for v in self.values if like is None or v.type == like.type]
        if like is not None and (not found or self.choose(False, False, True)):
            rows = [-1 if d == DYNAMIC else d for d in like.type.shape]
            return self.input(*rows, dtype=like.type.dtype)
        return self.draw(st.sampled_from(found))

    def parameter(self, *shape: int, dtype: str | None = None) -> Value:
        return self._argument("parameter", shape, dtype or self.dtype)

    # Products

    def weight(
        self, n: int, k: int, block: tuple[int, int] | None = None, experts: int = 0
    ) -> Value:
        leading = (experts,) if experts else ()
        if self.store == "plain":
            return self.parameter(*leading, n, k)
        scale = "f8E8M0FNU" if self.store == "e8m0" else "f32"
        stored = "f8E4M3FN" if self.store == "e8m0" else self.store
        type_ = Shaped((*leading, n, k), stored, Scheme(block or self.block, scale))
        codes = self._argument("parameter", type_.shape, stored)
        scales = self._argument("parameter", type_.scale_shape, scale)
        return self._op("pack", [codes, scales], [type_], None)[0]

    def quantized(self, x: Value, group: int | None = None) -> Value:
        dtype = "i8" if self.store == "i8" else "f8E4M3FN"
        type_ = replace(x.type, dtype=dtype, scheme=Scheme((1, group or self.block[1]), "f32"))
        return self._op("quantize", [x], [type_], None)[0]

    def by_a_scale(self, x: Value) -> Value:
        """x, quantized by a static scale: its own, or one that another value has, too."""
        if not self.scales or self.maybe():
            self.scales.append(self.parameter(1, dtype="f32"))
        dtype = "i8" if self.store == "i8" else "f8E4M3FN"
        type_ = replace(x.type, dtype=dtype, scheme=Scheme((1, x.type.shape[-1]), "f32"))
        return self._op("quantize", [x, self.choose(*self.scales)], [type_], None)[0]

    def in_format(self, x: Value, dtype: str, group: int, scale: str, packing: str) -> Value:
        scheme = Scheme((1, group or x.type.shape[-1]), scale, packing)
        return self._op("quantize", [x], [replace(x.type, dtype=dtype, scheme=scheme)], None)[0]

    def source(self, x: Value) -> tuple[Value, str]:
        """How products read x: as it is, quantized, or to be quantized; and the attribute."""
        kind = self.choose("plain", "quantized", "by a scale", "attribute")
        if self.store == "plain" or kind == "plain":
            return x, ""
        if kind == "quantized":
            return self.quantized(x), ""
        if kind == "by a scale":
            return self.by_a_scale(x), ""
        return x, f", qfuse.input_scheme = {Scheme((1, self.block[1]), 'f32')}"

    def product(
        self, source: tuple[Value, str], w: Value, others: Sequence[Value] = (), parts: int = 1
    ) -> list[Value]:
        """A product, or with `others` (indptr and perhaps tokens) one by experts."""
        x, attribute = source
        n = w.type.shape[-2] if parts == 1 else HIDDEN
        rows = others[1].type.shape if len(others) == 2 else x.type.rows
        dtype = self.dtype if others else self.choose(self.dtype, self.dtype, self.dtype, "f32")
        present = [1, 1] + [1, int(len(others) == 2)] * bool(others) + [0] * 6
        sizes, results = ", ".join(map(str, present)), [1] * parts + [0] * (4 - parts)
        accumulators = ", ".join(f"%acc{i}: f32" for i in range(parts))
        yielded = ", ".join(f"%acc{i}" for i in range(parts))
        types = ", ".join(["f32"] * parts)
        region = f'({{\n^bb0({accumulators}):\n"qfuse.yield"({yielded}) : ({types}) -> ()\n}})'
        attributes = (
            f"parts = array<i64: {', '.join([str(n)] * parts)}>, maps = [], "
            f"operandSegmentSizes = array<i32: {sizes}>, "
            f"resultSegmentSizes = array<i32: {', '.join(map(str, results))}>{attribute}"
        )
        out = [Shaped((*rows, n), dtype)] * parts
        name = "group_matmul" if others else "matmul"
        return self._op(name, [x, w, *others], out, None, attributes, region)

    def gated(self, act: str, *operands: Value) -> Value:
        gate = operands[0].type
        width = gate.shape[-1] // (1 if len(operands) == 2 else 2)
        out = Shaped((*gate.rows, width), gate.dtype)
        attributes = (
            f'act = "{act}", operandSegmentSizes = array<i32: 1, {len(operands) - 1}, 0>, '
            "resultSegmentSizes = array<i32: 1, 0>"
        )
        return self._op("glu", operands, [out], None, attributes)[0]


# Steps: each reads values that are there and adds those it makes.


def _product(p: Writer) -> None:
    x = p.some()
    p.values += p.product(p.source(x), p.weight(p.choose(*WIDTHS), x.type.shape[-1]))


def _chain(p: Writer) -> None:
    """Element-wise operations one after another, on a product more often than not."""
    y = p.some()
    if p.choose(True, True, False):
        y = p.product(p.source(y), p.weight(HIDDEN, y.type.shape[-1]))[0]
        if p.choose(False, False, True):
            p.values.append(y)  # a second reader may come
    for _ in range(p.choose(1, 1, 2, 3)):
        y = _elementwise(p, y)
    p.values.append(y)


def _elementwise(p: Writer, y: Value) -> Value:
    kind = p.choose("bias", "residual", "residual", "factor", "column", "scalar", "itself", *ACTS)
    if kind in ACTS:
        return p.activate(kind, y)
    n, rows = y.type.shape[-1], tuple(-1 if d == DYNAMIC else d for d in y.type.rows)
    others: dict[str, Callable[[], Value]] = {
        "bias": lambda: p.parameter(n, dtype=p.choose(y.type.dtype, "f32")),
        "residual": lambda: p.some(y),
        "factor": lambda: p.some(y),
        "column": lambda: p.input(*rows, 1, dtype="f32"),
        "scalar": lambda: p.parameter(1, dtype="f32"),
        "itself": lambda: y,
    }
    other = others[kind]()
    operands = (y, other) if p.maybe() else (other, y)
    write = p.mul if kind in ("factor", "column", "scalar") else p.add
    return write(*operands, Shaped(y.type.shape, y.type.dtype))


def _norm(p: Writer) -> None:
    """A norm, perhaps of a sum, and what reads it: products, and readers of several formats."""
    x = p.some()
    if p.maybe():
        x = p.add(*((x, p.some(x)) if p.maybe() else (p.some(x), x)), x.type)
        if p.maybe():
            p.values.append(x)
    kind = p.choose({}, {"rounding": "after", "offset": 1.0}, {"rounding": "after"})
    y = p.rms_norm(x, p.parameter(x.type.shape[-1]), **kind)
    products = p.choose(0, 1, 1, 2)
    for _ in range(products):
        p.values += p.product(p.source(y), p.weight(p.choose(*WIDTHS), y.type.shape[-1]))
    formats = p.draw(st.permutations(FORMATS))[: p.choose(0, 0, 0, 1, 2, 2, 3)]
    p.values += [p.dequantize(p.in_format(y, *which)) for which in formats]
    if not (products or formats) or p.maybe():
        p.values.append(y)


def _see_quantized(p: Writer) -> None:
    """A value quantized, once or to two schemes, and seen by whoever reads the result."""
    x = p.some()
    for group in p.choose((None,), (16, 64), (None, None)):
        q = p.quantized(x, group) if p.choose(True, True, False) else p.by_a_scale(x)
        p.values.append(p.dequantize(q))


def _gate_up(p: Writer) -> None:
    """gate and up by two products, and what only looks like them."""
    x = p.some()
    k = x.type.shape[-1]
    n = p.choose(*WIDTHS)
    alike = ("right", "right", "biases", "same weight")
    kind = p.choose(*alike, "one bias", "other block", "other input", "read twice")
    source = p.source(x)
    weight = p.weight(n, k)
    gate = p.product(source, weight)[0]
    if kind == "other input":
        other = p.some()
        k, source = other.type.shape[-1], p.source(other)
    weight_only = source[0].type.scheme is None and not source[1]
    block = p.choose(*BLOCKS) if kind == "other block" and weight_only else None
    up = p.product(source, weight if kind == "same weight" else p.weight(n, k, block))[0]
    if gate.type != up.type:
        p.values += [gate, up]
        return
    if kind == "read twice":
        p.values.append(p.choose(gate, up))
    if kind in ("biases", "one bias"):
        gate = _biased(p, gate)
        up = _biased(p, up) if kind == "biases" else up
    y = p.gated(p.choose(*ACTS), *((gate, up) if p.maybe() else (up, gate)))
    if p.maybe():
        y = p.product(p.source(y), p.weight(HIDDEN, n))[0]
    p.values.append(y)


def _biased(p: Writer, y: Value) -> Value:
    bias = p.parameter(y.type.shape[-1], dtype=p.choose(y.type.dtype, "f32"))
    return p.add(*((y, bias) if p.maybe() else (bias, y)), y.type)


def _halves(p: Writer) -> None:
    """The GLU of one value's halves, and of halves of one product."""
    x = p.some()
    if p.maybe():
        x = p.product(p.source(x), p.weight(2 * HIDDEN, x.type.shape[-1]))[0]
    p.values.append(p.gated(p.choose(*ACTS), x))


def _qkv(p: Writer) -> None:
    x = p.some()
    source = p.source(x)
    for n in p.draw(st.lists(st.sampled_from(WIDTHS), min_size=2, max_size=5)):
        y = p.product(source, p.weight(n, x.type.shape[-1]))[0]
        p.values.append(_elementwise(p, y) if p.choose(False, False, True) else y)


def _experts(p: Writer) -> None:
    """A layer of experts: routed by given ids or by logits, gated, combined, with a residual."""
    x = p.some()
    k = x.type.shape[-1]
    if p.maybe():
        ids, weights = p.input(-1, CHOICES, dtype="i64"), p.input(-1, CHOICES, dtype="f32")
    else:
        ids, weights = _router(p)
    flat = Shaped((DYNAMIC, CHOICES), "i32")
    types = [flat, flat, Shaped((EXPERTS + 1,), "i32")]
    slots, tokens, indptr = p._op("route", [ids], types, None, f"num_experts = {EXPERTS} : i64")
    # the CPU wants parts of experts' weights to begin at multiples of 64
    block = (max(64, p.block[0]), p.block[1])
    rows = HIDDEN if p.store == "plain" else round_up(HIDDEN, block[0])
    wide = p.weight(rows + HIDDEN, k, block, EXPERTS)
    both = p.product(p.source(x), wide, [indptr, tokens], parts=2)
    hidden = p.gated(p.choose(*ACTS), *(both if p.maybe() else both[::-1]))
    down = p.weight(HIDDEN, HIDDEN, block, EXPERTS)
    y = p.product(p.source(hidden), down, [indptr])[0]
    out = Shaped((*x.type.rows, HIDDEN), p.dtype)
    sizes = "operandSegmentSizes = array<i32: 1, 1, 1, 0>"
    z = p._op("combine", [y, slots, weights], [out], None, sizes)[0]
    if p.maybe():
        p.values.append(z)
    if p.maybe():
        z = p.add(*((z, p.some(z)) if p.maybe() else (p.some(z), z)), z.type)
    p.values.append(z)


def _router(p: Writer) -> list[Value]:
    scoring = p.choose("softmax", "sigmoid")
    bias = [p.parameter(EXPERTS, dtype="f32")] if p.maybe() else []
    types = [Shaped((DYNAMIC, CHOICES), "i64"), Shaped((DYNAMIC, CHOICES), "f32")]
    attributes = (
        f'scoring = "{scoring}", normalize = {str(p.maybe()).lower()}, scale = 2.5 : f64, '
        "num_groups = 1 : i64, groups_used = 1 : i64"
    )
    logits = p.input(-1, EXPERTS, dtype="f32")
    return p._op("select_experts", [logits, *bias], types, None, attributes)


STEPS: dict[str, Callable[[Writer], None]] = {
    "product": _product,
    "chain": _chain,
    "norm": _norm,
    "quantized": _see_quantized,
    "gate-up": _gate_up,
    "halves": _halves,
    "qkv": _qkv,
    "experts": _experts,
}


@st.composite
def programs(draw: st.DrawFn, max_steps: int = 4) -> Case:
    """A legal program of one to `max_steps` steps."""
    rows = draw(st.sampled_from([(-1,), (1, -1), (2, -1)]))
    store = draw(st.sampled_from([CPU_STORES[0]] * 4 + [*CPU_STORES[1:], *OTHER_STORES]))
    p = Writer(draw, rows, store)
    # experts count tokens in one extent, so rows must be it
    kinds = [name for name in STEPS if name != "experts" or rows != (2, -1)]
    if store == "plain":
        kinds.remove("quantized")
    names = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=max_steps))
    for name in names:
        STEPS[name](p)
    read = {name for _, _, operands in p.steps for name in operands}
    made = p.values[1:]
    outputs = [v for v in made if v.name not in read or draw(st.sampled_from([False, True, False]))]
    text = p.text(outputs or made[-1:])
    return Case(text, store in CPU_STORES, tuple(names))
