"""Writing MLIR text: functions of vector, scf, memref and arith operations, with typed names.

Kernels are emitted as text because the text is what a reader of a dump sees, and building it
costs a tenth of building operations one by one through the bindings.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

LANES = 16
"""Elements of one vector of f32 or i32: a 512-bit register, which LLVM splits on smaller ones."""

# The bare-pointer calling convention wants static shapes.  Every buffer is a flat one of this
# many elements, larger than any memory, and the kernels do their own index arithmetic.
_UNBOUNDED = 1 << 40

_STORAGE = {"bf16": "i16", "f16": "i16", "f8E4M3FN": "i8", "f8E5M2": "i8", "f8E8M0FNU": "i8"}


def buffer(dtype: str) -> str:
    """Type of a pointer to elements of `dtype`; types without x86 registers lie as integers."""
    return f"memref<{_UNBOUNDED}x{_STORAGE.get(dtype, dtype)}>"


def vector(element: str, lanes: int = LANES) -> str:
    return f"vector<{lanes}x{element}>"


F32 = vector("f32")
I32 = vector("i32")
I8 = vector("i8")
MASK = vector("i1")


@dataclass(frozen=True)
class Value:
    """An SSA name and its type."""

    name: str
    type: str

    def __str__(self) -> str:
        return self.name


Index = Value | int
"""An index: a Python number as long as it is known, so that address arithmetic folds here."""


@dataclass
class Loop:
    """A running `scf.for`: its induction variable, loop-carried values, and results."""

    iv: Value
    carried: list[Value]
    results: list[Value]
    yielded: list[Value] = field(default_factory=list)


class Function:
    """One `func.func` under construction.

    Functions are never inlined: several entries of a kernel then share one copy of a product or
    an epilogue, and the code that computes an element is the same in all of them.
    """

    def __init__(self, symbol: str, params: Sequence[Value]) -> None:
        self.symbol = symbol
        self.params = list(params)
        self._lines: list[str] = []
        self._constants: dict[tuple[str, str], Value] = {}
        self._count = 0
        self._callees: dict[str, Function] = {}

    # -- plumbing ------------------------------------------------------------------------------

    def text(self, target: str = "") -> str:
        """The whole function; `target` is what `cpu.target_attributes` says of a level."""
        params = ", ".join(f"{p}: {p.type}" for p in self.params)
        constants = [
            f"{value} = arith.constant {text}" + (f" : {type_}" if type_ != "i1" else "")
            for (type_, text), value in self._constants.items()
        ]
        body = "\n".join([*constants, *self._lines, "return"])
        attributes = ", ".join(['"noinline"', '"nounwind"', *([target] if target else [])])
        head = (
            f"func.func @{self.symbol}({params}) attributes {{llvm.passthrough = [{attributes}]}}"
        )
        return f"{head} {{\n{body}\n}}\n"

    def fresh(self, type_: str) -> Value:
        self._count += 1
        return Value(f"%{self._count}", type_)

    def line(self, text: str) -> None:
        self._lines.append(text)

    def op(self, text: str, type_: str) -> Value:
        """`text` is everything right of the equals sign."""
        result = self.fresh(type_)
        self._lines.append(f"{result} = {text}")
        return result

    def call(self, callee: "Function", args: Sequence[Index]) -> None:
        values = [self.index(a) if isinstance(a, int) else a for a in args]
        types = ", ".join(p.type for p in callee.params)
        assert [v.type for v in values] == [p.type for p in callee.params], callee.symbol
        self._callees[callee.symbol] = callee
        self.line(f"func.call @{callee.symbol}({', '.join(map(str, values))}) : ({types}) -> ()")

    def reached(self) -> list["Function"]:
        """What it calls, and what that does, each once before its callers, and itself."""
        found: dict[str, Function] = {}
        for callee in self._callees.values():
            found |= {f.symbol: f for f in callee.reached()}
        return [*found.values(), self]

    # -- constants -----------------------------------------------------------------------------

    def constant(self, text: str, type_: str) -> Value:
        key = (type_, text)
        if key not in self._constants:
            self._constants[key] = Value(f"%c{len(self._constants)}", type_)
        return self._constants[key]

    def index(self, value: Index) -> Value:
        return value if isinstance(value, Value) else self.constant(str(value), "index")

    def splat(self, value: float, type_: str = F32) -> Value:
        """A vector whose f32 lanes are all the f32 nearest to `value`."""
        return self.constant(f"dense<{_f32_literal(value)}>", type_)

    def scalar(self, value: float) -> Value:
        """The f32 nearest to `value`."""
        return self.constant(_f32_literal(value), "f32")

    def isplat(self, value: int, type_: str = I32) -> Value:
        bits = int(type_.rpartition("xi")[2].rstrip(">"))
        value &= (1 << bits) - 1
        signed = value - (1 << bits) if value >> (bits - 1) else value
        return self.constant(f"dense<{signed}>", type_)

    def bytes(self, values: Sequence[int]) -> Value:
        signed = ", ".join(str(v - 256 if v > 127 else v) for v in values)
        return self.constant(f"dense<[{signed}]>", vector("i8", len(values)))

    def words(self, values: Sequence[int]) -> Value:
        signed = ", ".join(str(v - 65536 if v > 32767 else v) for v in values)
        return self.constant(f"dense<[{signed}]>", vector("i16", len(values)))

    # -- arithmetic ----------------------------------------------------------------------------

    def binary(self, name: str, a: Value, b: Value) -> Value:
        """`arith.<name>` on two values of one type."""
        assert a.type == b.type, (name, a, b)
        return self.op(f"arith.{name} {a}, {b} : {a.type}", a.type)

    def add(self, a: Value, b: Value) -> Value:
        return self.binary("addf", a, b)

    def sub(self, a: Value, b: Value) -> Value:
        return self.binary("subf", a, b)

    def mul(self, a: Value, b: Value) -> Value:
        return self.binary("mulf", a, b)

    def div(self, a: Value, b: Value) -> Value:
        return self.binary("divf", a, b)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        return self.op(f"vector.fma {a}, {b}, {c} : {a.type}", a.type)

    def compare(self, predicate: str, a: Value, b: Value) -> Value:
        kind = "cmpf" if "f32" in a.type else "cmpi"
        type_ = f"{a.type.rpartition('x')[0]}xi1>" if "<" in a.type else "i1"
        return self.op(f"arith.{kind} {predicate}, {a}, {b} : {a.type}", type_)

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        types = a.type if condition.type == "i1" else f"{condition.type}, {a.type}"
        return self.op(f"arith.select {condition}, {a}, {b} : {types}", a.type)

    def cast(self, name: str, a: Value, type_: str) -> Value:
        """A conversion such as `arith.extui`, written with its operation name."""
        return self.op(f"{name} {a} : {a.type} to {type_}", type_)

    def bitcast(self, a: Value, type_: str) -> Value:
        if a.type == type_:
            return a
        name = "vector.bitcast" if a.type.startswith("vector") else "arith.bitcast"
        return self.cast(name, a, type_)

    def broadcast(self, a: Value, type_: str = F32) -> Value:
        return self.cast("vector.broadcast", a, type_)

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        element = a.type.rpartition("x")[2].rstrip(">")
        return self.op(
            f"vector.shuffle {a}, {b} {list(lanes)} : {a.type}, {b.type}",
            vector(element, len(lanes)),
        )

    def halves(self, a: Value) -> list[Value]:
        """A vector as two: the registers that it is, where there are none as wide."""
        count = int(a.type.removeprefix("vector<").partition("x")[0])
        return [self.shuffle(a, a, range(i, i + count // 2)) for i in (0, count // 2)]

    def join(self, low: Value, high: Value) -> Value:
        """The inverse of `halves`."""
        count = int(low.type.removeprefix("vector<").partition("x")[0])
        return self.shuffle(low, high, range(2 * count))

    # -- index arithmetic ----------------------------------------------------------------------

    def _fold(self, name: str, a: Index, b: Index, known: int | None) -> Index:
        if known is not None:
            return known
        return self.binary(name, self.index(a), self.index(b))

    def iadd(self, a: Index, b: Index) -> Index:
        if b == 0:
            return a
        if a == 0:
            return b
        known = a + b if isinstance(a, int) and isinstance(b, int) else None
        return self._fold("addi", a, b, known)

    def isub(self, a: Index, b: Index) -> Index:
        known = a - b if isinstance(a, int) and isinstance(b, int) else None
        return a if b == 0 else self._fold("subi", a, b, known)

    def imul(self, a: Index, b: Index) -> Index:
        if b == 1:
            return a
        if a == 1:
            return b
        known = a * b if isinstance(a, int) and isinstance(b, int) else None
        if a == 0 or b == 0:
            known = 0
        return self._fold("muli", a, b, known)

    def idiv(self, a: Index, b: Index) -> Index:
        known = a // b if isinstance(a, int) and isinstance(b, int) else None
        return a if b == 1 else self._fold("divui", a, b, known)

    def imod(self, a: Index, b: Index) -> Index:
        known = a % b if isinstance(a, int) and isinstance(b, int) else None
        return self._fold("remui", a, b, 0 if b == 1 else known)

    def imin(self, a: Index, b: Index) -> Index:
        known = min(a, b) if isinstance(a, int) and isinstance(b, int) else None
        return self._fold("minsi", a, b, known)

    def imax(self, a: Index, b: Index) -> Index:
        known = max(a, b) if isinstance(a, int) and isinstance(b, int) else None
        return self._fold("maxsi", a, b, known)

    def address(self, *terms: tuple[Index, Index] | Index) -> Index:
        """Sum of terms; a pair is a product."""
        total: Index = 0
        for term in terms:
            total = self.iadd(total, self.imul(*term) if isinstance(term, tuple) else term)
        return total

    def icompare(self, predicate: str, a: Index, b: Index) -> Value:
        return self.op(f"arith.cmpi {predicate}, {self.index(a)}, {self.index(b)} : index", "i1")

    # -- memory --------------------------------------------------------------------------------

    def load(self, source: Value, at: Index, type_: str, mask: Value | None = None) -> Value:
        """A vector or scalar of `type_`; lanes outside `mask` are zero and are not touched."""
        at = self.index(at)
        if not type_.startswith("vector"):
            return self.op(f"memref.load {source}[{at}] : {source.type}", type_)
        if mask is None:
            return self.op(f"vector.load {source}[{at}] : {source.type}, {type_}", type_)
        zero = self.splat(0.0, type_) if "f32" in type_ else self.isplat(0, type_)
        return self.op(
            f"vector.maskedload {source}[{at}], {mask}, {zero} : {source.type}, {mask.type}, "
            f"{type_} into {type_}",
            type_,
        )

    def load_index(self, source: Value, at: Index) -> Value:
        """A signed whole number, i32 or i64, as an index."""
        element = source.type.rpartition("x")[2].rstrip(">")
        return self.cast("arith.index_cast", self.load(source, at, element), "index")

    def store_index(self, value: Index, target: Value, at: Index) -> None:
        """An index as an i32 or i64, whichever `target` holds."""
        element = target.type.rpartition("x")[2].rstrip(">")
        self.store(self.cast("arith.index_cast", self.index(value), element), target, at)

    def store(self, value: Value, target: Value, at: Index, mask: Value | None = None) -> None:
        at = self.index(at)
        if not value.type.startswith("vector"):
            self.line(f"memref.store {value}, {target}[{at}] : {target.type}")
        elif mask is None:
            self.line(f"vector.store {value}, {target}[{at}] : {target.type}, {value.type}")
        else:
            self.line(
                f"vector.maskedstore {target}[{at}], {mask}, {value} : {target.type}, "
                f"{mask.type}, {value.type}"
            )

    def prefetch(self, source: Value, at: Index, locality: int) -> None:
        """Fetch a cache line: to L1 with locality 3, to L2 with 2.  Any address will do."""
        at = self.index(at)
        self.line(
            f"memref.prefetch {source}[{at}], read, locality<{locality}>, data : {source.type}"
        )

    def first_lanes(self, count: Index, lanes: int = LANES) -> Value:
        """A mask of the first `count` lanes: none if it is not positive, all if it is large."""
        return self.op(
            f"vector.create_mask {self.index(count)} : {vector('i1', lanes)}", vector("i1", lanes)
        )

    def take_ticket(self, counters: Value, at: Index) -> Value:
        """The counter's value; it is one higher for whoever comes next."""
        one = self.constant("1", "i64")
        ticket = self.op(
            f"memref.atomic_rmw addi {one}, {counters}[{self.index(at)}] : "
            f"(i64, {counters.type}) -> i64",
            "i64",
        )
        return self.cast("arith.index_cast", ticket, "index")

    # -- control flow --------------------------------------------------------------------------

    @contextmanager
    def loop(
        self, low: Index, high: Index, step: int = 1, carried: Sequence[Value] = ()
    ) -> Iterator[Loop]:
        """`scf.for`; with `carried`, set `loop.yielded` before the body ends."""
        iv = self.fresh("index")
        inner = [self.fresh(v.type) for v in carried]
        head = f"scf.for {iv} = {self.index(low)} to {self.index(high)} step {self.index(step)}"
        types = ", ".join(v.type for v in carried)
        loop = Loop(iv, inner, [])
        if carried:
            name = self.fresh("").name
            loop.results = [Value(f"{name}#{i}", v.type) for i, v in enumerate(carried)]
            inits = ", ".join(f"{i} = {v}" for i, v in zip(inner, carried, strict=True))
            head = f"{name}:{len(inner)} = {head} iter_args({inits}) -> ({types})"
        self.line(head + " {")
        yield loop
        if carried:
            assert [v.type for v in loop.yielded] == [v.type for v in carried]
            self.line(f"scf.yield {', '.join(map(str, loop.yielded))} : {types}")
        self.line("}")

    @contextmanager
    def each(self, count: int) -> Iterator[Index]:
        """The numbers below `count`; no loop for a single one."""
        if count == 1:
            yield 0
            return
        with self.loop(0, count) as loop:
            yield loop.iv

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        self.line(f"scf.if {condition} {{")
        yield
        self.line("}")

    @contextmanager
    def tickets(self, counters: Value, at: int, total: Index) -> Iterator[Value]:
        """Take work from a shared counter until `total` pieces are gone; gives the piece."""
        go = self.constant("true", "i1")
        going = self.fresh("i1")
        self.line(f"scf.while ({going} = {go}) : (i1) -> () {{")
        self.line(f"scf.condition({going})\n}} do {{")
        ticket = self.take_ticket(counters, at)
        there = self.icompare("ult", ticket, total)
        with self.when(there):
            yield ticket
        self.line(f"scf.yield {there} : i1\n}}")


def _f32_literal(value: float) -> str:
    """The bit pattern of the nearest f32: exact, also for infinities and NaN."""
    try:
        bits = struct.unpack("<I", struct.pack("<f", value))[0]
    except OverflowError:
        bits = 0x7F800000 if value > 0 else 0xFF800000
    return f"0x{bits:08X}"
