"""What of a product's epilogue a library product does itself: act(scale * accumulator + bias)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from qfuse.dialects.activations import build_activation
from qfuse.dialects.bindings import func, ir
from qfuse.dialects.elementwise_ops import ACTIVATIONS
from qfuse.dialects.matmul_op import accumulators_of

_COMMUTATIVE = ("arith.addf", "arith.mulf", "arith.maximumf")


@dataclass(frozen=True)
class EpilogueForm:
    """An epilogue region, as far as it is act(scale * accumulator + bias), rounded to the result's
    type.

    `bias` is the number of the extra operand that is added, for all rows alike, None without one.
    `scale` is a constant, 1 without one.  `activation` is "" without one.  `rounds` names what the
    region rounds before something that a library does in f32 ("scale", "bias", "activation" or ""):
    the library's result then differs in the last bits.  A rounding to bf16 before a power of two is
    no such one: both orders give the same number, unless it overflows or is subnormal in f32.
    `other` says what else the region does, "" if nothing; the four mean nothing then.

    Any region can be computed apart from its product.  `rounded_to` is the type that all
    accumulators are rounded to before anything else ("" if there is none), and so what a library
    may leave of them; `results` counts what the region yields.
    """

    bias: int | None = None
    activation: str = ""
    scale: float = 1.0
    rounds: str = ""
    other: str = ""
    rounded_to: str = ""
    results: int = 1

    def __str__(self) -> str:
        if self.other:
            return self.other
        parts = ["bias"] if self.bias is not None else []
        parts = [f"a scale of {self.scale:g}", *parts] if self.scale != 1 else parts
        parts += [self.activation] if self.activation else []
        return " and ".join(parts) or "nothing"

    @property
    def exact_scale(self) -> bool:
        """Whether the scale rounds nothing, wherever it is multiplied."""
        return is_power_of_two(self.scale)


def is_power_of_two(number: float) -> bool:
    return math.isfinite(number) and abs(math.frexp(number)[0]) == 0.5


def read_epilogue(product: ir.Operation) -> EpilogueForm:
    """The form of a product's epilogue region."""
    block = product.regions[0].blocks[0]
    parts = len(ir.DenseI64ArrayAttr(product.attributes["parts"]))
    accumulators = list(block.arguments)[:parts]
    types = {t for value in accumulators for t in _roundings(value)}
    rounded_to = types.pop() if len(types) == 1 else ""
    return replace(
        _form(product, block, parts), rounded_to=rounded_to, results=len(product.results)
    )


def _roundings(accumulator: ir.Value) -> list[str]:
    """The types that the uses of an accumulator round it to; "" for a use that does not."""
    users = [use.owner.operation for use in accumulator.uses]
    return [str(u.results[0].type) if u.name == "arith.truncf" else "" for u in users]


def _form(product: ir.Operation, block: ir.Block, parts: int) -> EpilogueForm:
    maps = [ir.StringAttr(m).value for m in ir.ArrayAttr(product.attributes["maps"])]
    (*_, terminator) = block.operations
    yielded = list(terminator.operation.operands)
    if parts > 1 or len(yielded) > 1:
        read = sorted({p for value in yielded for p in accumulators_of(value, parts)})
        return EpilogueForm(other=f"{len(yielded)} results of {len(read)} parts of the weight")
    if "!qfuse.qtensor" in str(product.results[0].type):
        return EpilogueForm(other="a quantized result")
    value, _ = _without_rounding(yielded[0])  # to the result's type, or the rounding to it follows
    activation = ""
    for name in ACTIVATIONS:
        if (inner := match_activation(name, value)) is not None:
            activation, value = name, inner
            break
    value, rounded = _without_rounding(value)
    # the largest of a rounded value and zero is the rounded largest of both
    rounds = "activation" if rounded and activation not in ("", "relu") else ""
    bias, inner = _added_vector(value, parts, maps)
    if bias is not None:
        value, rounded = _without_rounding(inner)
        rounds = "bias" if rounded else rounds
    scale, inner = _constant_scale(value)
    if scale is not None:
        value, rounded = _without_rounding(inner)
        apart = is_power_of_two(scale) and _rounded_type(inner) == "bf16"
        rounds = "scale" if rounded and not apart else rounds
    if isinstance(value, ir.BlockArgument):
        return EpilogueForm(bias, activation, 1.0 if scale is None else scale, rounds)
    if "[M,N]" in maps:
        return EpilogueForm(other="a residual")
    return EpilogueForm(other=value.owner.operation.name)


def match_activation(name: str, value: ir.Value) -> ir.Value | None:
    """What `value` is the activation `name` of, as `build_activation` writes it, or None."""
    with _scratch() as x:
        wanted = build_activation(name, x)
        found: dict[str, ir.Value] = {}
        return found["x"] if _equal(wanted, value, x, found) else None


def _equal(wanted: ir.Value, value: ir.Value, x: ir.Value, found: dict[str, ir.Value]) -> bool:
    """Whether two expressions are equal, `x` in the first standing for one value of the second."""
    if wanted == x:
        return found.setdefault("x", value) == value
    if isinstance(value, ir.BlockArgument):
        return False
    a, b = wanted.owner.operation, value.owner.operation
    if a.name != b.name or len(a.operands) != len(b.operands):
        return False
    if a.name == "arith.constant":
        return bool(a.attributes["value"] == b.attributes["value"])
    orders = [list(b.operands)]
    if a.name in _COMMUTATIVE:
        orders.append(orders[0][::-1])
    for operands in orders:
        tried = dict(found)
        pairs = zip(a.operands, operands, strict=True)
        if all(_equal(left, right, x, tried) for left, right in pairs):
            found.update(tried)
            return True
    return False


def _without_rounding(value: ir.Value) -> tuple[ir.Value, bool]:
    """`value` before it was rounded to a shorter type and extended again, and whether it was."""
    if isinstance(value, ir.BlockArgument) or value.owner.operation.name != "arith.extf":
        return value, False
    inner = value.owner.operation.operands[0]
    if isinstance(inner, ir.BlockArgument) or inner.owner.operation.name != "arith.truncf":
        return value, False
    return inner.owner.operation.operands[0], True


def _rounded_type(value: ir.Value) -> str:
    """The type that `_without_rounding` finds `value` rounded to, "" where it is not."""
    _, rounded = _without_rounding(value)
    return str(value.owner.operation.operands[0].type) if rounded else ""


def _constant_scale(value: ir.Value) -> tuple[float | None, ir.Value]:
    """(a constant, the rest) if `value` multiplies by it, or divides by a power of two.

    Zero is none: a library need not look at what it multiplies, NaN or not.
    """
    if isinstance(value, ir.BlockArgument):
        return None, value
    op = value.owner.operation
    if op.name == "arith.mulf":
        for number, other in (op.operands, list(op.operands)[::-1]):
            if scale := _constant(number):
                return scale, other
    if op.name == "arith.divf":
        divisor = _constant(op.operands[1])
        if divisor and is_power_of_two(divisor) and _is_normal(1 / divisor):
            return 1 / divisor, op.operands[0]
    return None, value


def _constant(value: ir.Value) -> float | None:
    """A normal number of f32 that is written down, else None."""
    if isinstance(value, ir.BlockArgument) or value.owner.operation.name != "arith.constant":
        return None
    number = float(ir.FloatAttr(value.owner.operation.attributes["value"]).value)
    return number if _is_normal(number) else None


def _is_normal(number: float) -> bool:
    return 2.0**-126 <= abs(number) < 2.0**128


def _added_vector(value: ir.Value, parts: int, maps: list[str]) -> tuple[int | None, ir.Value]:
    """(number of the [N] operand, the rest) if `value` adds one, else (None, value)."""
    if isinstance(value, ir.BlockArgument) or value.owner.operation.name != "arith.addf":
        return None, value
    operands = list(value.owner.operation.operands)
    for side, other in ((0, 1), (1, 0)):
        operand = operands[side]
        if isinstance(operand, ir.BlockArgument) and operand.arg_number >= parts:
            number = operand.arg_number - parts
            if maps[number] == "[N]":
                return number, operands[other]
    return None, value


@contextmanager
def _scratch() -> Iterator[ir.Value]:
    """A place to build operations in, with one f32 to build them on."""
    f32 = ir.F32Type.get()
    with ir.Location.unknown():
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            function = func.FuncOp("scratch", ([f32], []))
            block = function.add_entry_block()
        with ir.InsertionPoint(block):
            yield block.arguments[0]
