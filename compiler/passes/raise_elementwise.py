"""Patterns of `qfuse-raise-torch` for element-wise operations next to what qfuse owns."""

from ast import literal_eval
from collections.abc import Callable, Mapping
from math import inf

from qfuse.compiler import remarks
from qfuse.compiler.passes.predicates import readers
from qfuse.compiler.pdl import MISMATCH, Pattern, Refusal, Verdict
from qfuse.compiler.torch_ir import (
    FROM_BUILTIN,
    TO_BUILTIN,
    VIEWS,
    NotConstant,
    builtin_type,
    constant_of,
    from_builtin,
    is_constant,
    to_builtin,
)
from qfuse.dialects import arithmetic
from qfuse.dialects.bindings import arith, ir
from qfuse.dialects.elementwise_ops import ACTIVATIONS, create_glu
from qfuse.dialects.glu import Glu
from qfuse.dialects.matmul_op import map_of
from qfuse.dialects.types import is_float, shaped
from qfuse.dialects.verify import DYNAMIC

SPELLINGS: dict[str, tuple[str, ...]] = {
    "add": ("add.Tensor x y 1", "add.Scalar x #y 1"),
    "sub": ("sub.Tensor x y 1", "sub.Scalar x #y 1", "rsub.Scalar y #x 1"),
    "mul": ("mul.Tensor x y", "mul.Scalar x #y"),
    "div": ("div.Tensor x y", "div.Scalar x #y"),
    "silu": ("silu x",),
    "gelu": ("gelu x 'none'",),
    "gelu_tanh": ("gelu x 'tanh'",),
    "relu": ("relu x",),
    "sigmoid": ("sigmoid x",),
    "tanh": ("tanh x",),
    "exp": ("exp x",),
    "neg": ("neg x",),
    "square": ("square x", "pow.Tensor_Scalar x 2"),
    "clamp": ("clamp x low high", "clamp_min x low", "clamp_max x high", "hardtanh x low high"),
    "cast": ("to.dtype x * * * None",),
}
"""How torch writes each element-wise operation: `torch.aten.` and what its arguments are.

`x` and `y` are the operands of ours, `#x` and `#y` numbers in their place, which become constants;
`low` and `high` are attributes, None where they are not given; `*` is anything, and any other word
is the constant that the argument must be.
"""

_PLACES = ("x", "y", "#x", "#y", "*")
_NO_BOUND = {"low": -inf, "high": inf}


def _spelling(name: str, text: str) -> Callable[[Pattern], None]:
    """The pattern for one way in which torch writes `qfuse.<name>`"""
    torch_name, *words = text.split()
    entry = arithmetic.ELEMENTWISE[name]
    operands = ["x", "y"][: entry.operands]
    tensors = [words.index(o) for o in operands if o in words]
    numbers = [words.index(f"#{o}") for o in operands if o not in words]
    bounds = {a: words.index(a) for a in entry.attributes if a in words}

    def words_agree(_root: ir.Operation, *arguments: ir.Value) -> Verdict:
        for word, argument in zip(words, arguments, strict=True):
            if word in _PLACES or word in bounds:
                continue
            if not is_constant(argument, literal_eval(word)):
                return MISMATCH
        return None

    def numbers_are_known(_root: ir.Operation, *arguments: ir.Value) -> Verdict:
        given = _NO_BOUND | {a: _bound(a, arguments[i]) for a, i in bounds.items()}
        if bounds and not _are_bounds(given):
            return MISMATCH
        return MISMATCH if any(_number(arguments[i]) is None for i in numbers) else None

    def make(rewriter, root: ir.Operation, *arguments: ir.Value) -> None:
        given = _NO_BOUND | {a: _bound(a, arguments[i]) for a, i in bounds.items()}
        f64, type_ = ir.F64Type.get(), root.results[0].type
        op = ir.Operation.create(
            f"qfuse.{name}",
            results=[builtin_type(type_)],
            operands=[
                to_builtin(arguments[words.index(o)])
                if o in words
                else _constant(arguments[words.index(f"#{o}")])
                for o in operands
            ],
            attributes={a: ir.FloatAttr.get(f64, given[a]) for a in entry.attributes},
        )
        rewriter.replace_op(root, [from_builtin(op.result, type_)])

    def pattern(p: Pattern) -> None:
        arguments = [p.value() for _ in words]
        root = p.op(f"torch.aten.{torch_name}", *arguments)
        values = [arguments[i] for i in tensors]
        p.require(words_agree, root, *arguments)
        p.require(touches_qfuse, root, *values)
        p.require(computes_floats, root, *values)
        p.require(broadcasts_by_rows if len(values) == 2 else keeps_shape, root, *values)
        p.require(numbers_are_known, root, *arguments)
        p.rewrite(root, make, *arguments)

    pattern.__name__ = name
    return pattern


def _number(value: ir.Value) -> float | None:
    """The number that `value` is known to be."""
    try:
        number = constant_of(value)
    except NotConstant:
        return None
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    return float(number) if is_number else None


def _bound(name: str, value: ir.Value) -> float | None:
    return _NO_BOUND[name] if is_constant(value, None) else _number(value)


def _are_bounds(bounds: Mapping[str, float | None]) -> bool:
    """Whether `qfuse.clamp` takes them; torch takes any, and means something by all of them."""
    low, high = bounds["low"], bounds["high"]
    return low is not None and high is not None and low <= high and bounds != _NO_BOUND


def _constant(number: ir.Value) -> ir.Value:
    """A number as a tensor<f32>: torch computes with numbers in f32, whatever the tensor's type."""
    f32 = ir.F32Type.get()
    type_ = ir.RankedTensorType.get([], f32)
    value = ir.FloatAttr.get(f32, _number(number))
    return arith.constant(type_, ir.DenseElementsAttr.get_splat(type_, value))


def touches_qfuse(root: ir.Operation, *operands: ir.Value) -> Verdict:
    """An operand comes from a qfuse operation, reshaped or not, or a reader is one."""
    for value in map(_unviewed, operands):
        if not isinstance(value, ir.BlockArgument) and value.owner.operation.name == FROM_BUILTIN:
            return None
    if any(op.name == TO_BUILTIN for op in readers(root.results[0])):
        return None
    return MISMATCH


def _unviewed(value: ir.Value) -> ir.Value:
    """What `value` is a reshape of."""
    while not isinstance(value, ir.BlockArgument) and value.owner.operation.name in VIEWS:
        value = value.owner.operation.operands[0]
    return value


def computes_floats(root: ir.Operation, *operands: ir.Value) -> Verdict:
    types = [builtin_type(v.type) for v in (*operands, root.results[0])]
    if None in types or not all(is_float(shaped(t)) for t in types):
        return MISMATCH
    shape = shaped(types[-1]).shape
    if not shape:
        return MISMATCH
    if shape[-1] == DYNAMIC:
        return Refusal("the last dimension is not static")
    return None


def keeps_shape(root: ir.Operation, x: ir.Value) -> Verdict:
    before, after = (shaped(builtin_type(v.type)) for v in (x, root.results[0]))
    return None if before.shape == after.shape else MISMATCH


def broadcasts_by_rows(root: ir.Operation, *operands: ir.Value) -> Verdict:
    """One operand has the result's shape, the other is [N], [M,1], [M,N] or a scalar over it."""
    y = shaped(builtin_type(root.results[0].type))
    values = [shaped(builtin_type(v.type)) for v in operands]
    if any(not v.shape and v.dtype != y.dtype for v in values):
        return MISMATCH  # torch rounds a scalar tensor to the other operand's type first
    if any(v.shape == y.shape for v in values) and all(
        map_of(v, y.rows, y.shape[-1]) is not None for v in values
    ):
        return None
    return MISMATCH


def _glu(act: str, gate_first: bool) -> Callable[[Pattern], None]:
    """mul(act(gate), up), in either order"""

    def glu(p: Pattern) -> None:
        activated = p.op(f"qfuse.{act}", gate := p.value())
        up = p.value()
        factors = (p.result(activated), up) if gate_first else (up, p.result(activated))
        root = p.op("qfuse.mul", *factors)
        p.require(activation_has_one_reader, activated)
        p.require(types_are_equal, root, gate, up)
        p.rewrite(root, make_glu, gate, up)

    def make_glu(rewriter, root: ir.Operation, gate: ir.Value, up: ir.Value) -> None:
        op = create_glu(Glu(act), [gate, up], root.results[0].type)
        remarks.fired("glu", root)
        rewriter.replace_op(root, op.results)

    return glu


def activation_has_one_reader(activated: ir.Operation) -> Verdict:
    count = len(readers(activated.results[0]))
    if count == 1:
        return None
    return Refusal(
        f"the activation has {count} readers", "read the product with up only, to make it a GLU"
    )


def types_are_equal(root: ir.Operation, gate: ir.Value, up: ir.Value) -> Verdict:
    if gate.type == up.type == root.results[0].type:
        return None
    return Refusal(f"gate is {shaped(gate.type)} but up is {shaped(up.type)}")


ELEMENTWISE = (
    *(_spelling(name, text) for name, texts in SPELLINGS.items() for text in texts),
    *(_glu(act, gate_first) for act in ACTIVATIONS for gate_first in (True, False)),
)
