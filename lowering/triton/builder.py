"""Typed operations of the `tt` dialect, at the insertion point.

Operands may be Python numbers, and blocks of different shapes: a number takes the type of the
other operand, a scalar is splatted, and an extent of one is broadcast.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from qfuse.dialects.bindings import ir
from qfuse.dialects.tt_compute_ops import FULL_PRECISION_STEPS, INPUT_PRECISIONS, ROUNDINGS
from qfuse.dialects.tt_dialect import (
    Block,
    block_of,
    desc_block,
    desc_type,
    pointee_of,
)
from qfuse.dialects.tt_memory_ops import ATOMIC_OPS, ATOMIC_ORDERS, ATOMIC_SCOPES
from qfuse.lowering.triton.gpu import Gpu

Operand: TypeAlias = ir.Value | int | float
Shape = tuple[int, ...]

_CACHE, _EVICT = 1, 1  # Triton's enums: no cache modifier, normal eviction
_SLT, _EQ, _ULT, _UGT = 2, 0, 6, 8  # arith.cmpi


def i32_attr(value: int) -> ir.Attribute:
    return ir.IntegerAttr.get(ir.IntegerType.get_signless(32), value)


class Builder:
    """Emits into one kernel; made by `module.kernel`."""

    def __init__(self, gpu: Gpu, context: ir.Context) -> None:
        self.gpu = gpu
        self.context = context

    # Types and attributes

    def type(self, name: str, shape: Shape = ()) -> ir.Type:
        """The type of a scalar, or of a tensor of `shape`, of element type `name`."""
        element = ir.Type.parse(name, self.context)
        return ir.RankedTensorType.get(shape, element) if shape else element

    def op(
        self,
        name: str,
        operands: Sequence[ir.Value],
        results: Sequence[ir.Type],
        regions: int = 0,
        **attributes: ir.Attribute,
    ) -> ir.Operation:
        return ir.Operation.create(
            name, results=results, operands=operands, attributes=attributes, regions=regions
        )

    def value(
        self, name: str, operands: Sequence[ir.Value], result: ir.Type, **attributes: ir.Attribute
    ) -> ir.Value:
        return self.op(name, operands, [result], **attributes).result

    # Constants and arithmetic

    def full(self, value: int | float, dtype: str = "i32", shape: Shape = ()) -> ir.Value:
        """A constant scalar or tensor."""
        type_ = self.type(dtype, shape)
        element = self.type(dtype)
        if isinstance(element, ir.FloatType):
            attribute = ir.FloatAttr.get(element, float(value))
        else:
            attribute = ir.IntegerAttr.get(element, int(value))
        if shape:
            attribute = ir.DenseElementsAttr.get_splat(type_, attribute)
        return self.value("arith.constant", [], type_, value=attribute)

    def i64(self, value: ir.Value) -> ir.Value:
        return self.value("arith.extsi", [value], self._like(value, "i64"))

    def add(self, a: Operand, b: Operand) -> ir.Value:
        return self._binary("arith.addi", "arith.addf", a, b)

    def sub(self, a: Operand, b: Operand) -> ir.Value:
        return self._binary("arith.subi", "arith.subf", a, b)

    def mul(self, a: Operand, b: Operand) -> ir.Value:
        return self._binary("arith.muli", "arith.mulf", a, b)

    def div(self, a: Operand, b: Operand) -> ir.Value:
        """Of integers toward zero; of floats as fast as the target can (see precise_div)."""
        return self._binary("arith.divsi", "arith.divf", a, b)

    def rem(self, a: Operand, b: Operand) -> ir.Value:
        return self.binary("arith.remsi", a, b)

    def minimum(self, a: Operand, b: Operand) -> ir.Value:
        """Of integers."""
        return self.binary("arith.minsi", a, b)

    def maximum(self, a: Operand, b: Operand) -> ir.Value:
        """Of integers."""
        return self.binary("arith.maxsi", a, b)

    def ceil_div(self, a: ir.Value, b: int) -> ir.Value:
        return self.div(self.add(a, b - 1), b)

    def less(self, a: Operand, b: Operand) -> ir.Value:
        """a < b, of signed integers."""
        return self.compare(_SLT, a, b)

    def equal(self, a: Operand, b: Operand) -> ir.Value:
        """a == b, of integers."""
        return self.compare(_EQ, a, b)

    def below(self, a: Operand, b: Operand) -> ir.Value:
        """a < b, of unsigned integers: 0 <= a < b of signed ones where b is not negative."""
        return self.compare(_ULT, a, b)

    def above(self, a: Operand, b: Operand) -> ir.Value:
        """a > b, of unsigned integers."""
        return self.compare(_UGT, a, b)

    def compare(self, predicate: int, a: Operand, b: Operand, name: str = "arith.cmpi") -> ir.Value:
        """A comparison of integers or, as "arith.cmpf", of floats, by MLIR's number for it."""
        a, b = self.unify(a, b)
        number = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), predicate)
        return self.value(name, [a, b], self._like(a, "i1"), predicate=number)

    def both(self, a: ir.Value | None, b: ir.Value | None) -> ir.Value | None:
        """The conjunction of two masks; None is true."""
        if a is None or b is None:
            return b if a is None else a
        return self.binary("arith.andi", a, b)

    def select(self, condition: ir.Value, a: Operand, b: Operand) -> ir.Value:
        a, b = self.unify(a, b)
        shape = _joint([block_of(condition).shape, block_of(a).shape])
        condition, a, b = (self.broadcast(v, shape) for v in (condition, a, b))
        return self.value("arith.select", [condition, a, b], a.type)

    def binary(self, name: str, a: Operand, b: Operand) -> ir.Value:
        """`name`, on operands brought to one type."""
        a, b = self.unify(a, b)
        return self.value(name, [a, b], a.type)

    def unary(self, name: str, a: ir.Value) -> ir.Value:
        return self.value(name, [a], a.type)

    def precise_div(self, a: Operand, b: Operand) -> ir.Value:
        """The quotient of two f32 rounded once; several times the work of `div` on NVIDIA."""
        return self.binary("tt.precise_divf", a, b)

    def fma(self, a: Operand, b: Operand, c: Operand) -> ir.Value:
        """a * b + c, rounded once, whatever fusion of floating-point operations is asked for.

        On NVIDIA as inline assembly: LLVM 22's SLP vectorizer (Triton 3.6) merges `math.fma` of
        two accumulators into one that waits for both products, and spills (TRITON.md, finding 3).
        """
        a, b = self.unify(a, b)
        b, c = self.unify(b, c)
        a, c = self.unify(a, c)
        if not self.gpu.is_cuda:
            return self.value("math.fma", [a, b, c], c.type)
        return self.asm("fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", [a, b, c], "f32")

    def asm(
        self,
        text: str,
        constraints: str,
        operands: Sequence[ir.Value],
        dtype: str,
        packed: int = 1,
    ) -> ir.Value:
        """Instructions of the target on blocks of one shape, `packed` elements at a time.

        The result, of `dtype`, has as many registers as `constraints` says; the operands follow.
        """
        return self.value(
            "tt.elementwise_inline_asm",
            operands,
            self._like(operands[0], dtype),
            asm_string=ir.StringAttr.get(text),
            constraints=ir.StringAttr.get(constraints),
            packed_element=i32_attr(packed),
            pure=ir.BoolAttr.get(True),
        )

    def unify(self, a: Operand, b: Operand) -> tuple[ir.Value, ir.Value]:
        """Both operands with one type and shape."""
        if not isinstance(a, ir.Value):
            assert isinstance(b, ir.Value)
            a = self.full(a, str(block_of(b).dtype), block_of(b).shape)
        elif not isinstance(b, ir.Value):
            b = self.full(b, str(block_of(a).dtype), block_of(a).shape)
        shape = _joint([block_of(a).shape, block_of(b).shape])
        return self.broadcast(a, shape), self.broadcast(b, shape)

    def _binary(self, of_integers: str, of_floats: str, a: Operand, b: Operand) -> ir.Value:
        a, b = self.unify(a, b)
        is_float = isinstance(block_of(a).dtype, ir.FloatType)
        return self.value(of_floats if is_float else of_integers, [a, b], a.type)

    def _like(self, value: ir.Value, dtype: str) -> ir.Type:
        return self.type(dtype, block_of(value).shape)

    # Shapes

    def program_id(self, axis: int = 0) -> ir.Value:
        return self.value("tt.get_program_id", [], self.type("i32"), axis=i32_attr(axis))

    def num_programs(self, axis: int = 0) -> ir.Value:
        return self.value("tt.get_num_programs", [], self.type("i32"), axis=i32_attr(axis))

    def range(self, count: int) -> ir.Value:
        """0, 1, ..., count - 1 as tensor<count x i32>."""
        return self.value(
            "tt.make_range",
            [],
            self.type("i32", (count,)),
            start=i32_attr(0),
            end=i32_attr(count),
        )

    def expand(self, value: ir.Value, axis: int) -> ir.Value:
        """With a dimension of extent one before `axis`."""
        block = block_of(value)
        shape = (*block.shape[:axis], 1, *block.shape[axis:])
        result = Block(shape, block.dtype).type()
        return self.value("tt.expand_dims", [value], result, axis=i32_attr(axis))

    def broadcast(self, value: ir.Value, shape: Shape) -> ir.Value:
        """`value` with `shape`: splatted if it is a scalar, repeated where its extent is one."""
        block = block_of(value)
        if block.shape == tuple(shape):
            return value
        name = "tt.broadcast" if block.shape else "tt.splat"
        return self.value(name, [value], Block(tuple(shape), block.dtype).type())

    def reshape(self, value: ir.Value, shape: Shape) -> ir.Value:
        block = block_of(value)
        if block.shape == tuple(shape):
            return value
        return self.value("tt.reshape", [value], Block(tuple(shape), block.dtype).type())

    def join(self, first: ir.Value, second: ir.Value) -> ir.Value:
        """Two blocks of one shape, along a new last dimension of extent two."""
        block = block_of(first)
        result = Block((*block.shape, 2), block.dtype).type()
        return self.value("tt.join", [first, second], result)

    def transpose(self, value: ir.Value) -> ir.Value:
        """Of a matrix."""
        block = block_of(value)
        result = Block(block.shape[::-1], block.dtype).type()
        order = ir.DenseI32ArrayAttr.get([1, 0])
        return self.value("tt.trans", [value], result, order=order)

    # Conversions

    def convert(self, value: ir.Value, dtype: str) -> ir.Value:
        """A float as another float type, to nearest even; FP8 saturates."""
        source, result = block_of(value).dtype, self._like(value, dtype)
        if str(source) == dtype:
            return value
        wider = self.type(dtype).width > source.width
        if "f8" in dtype or "f8" in str(source):
            rounding = {} if wider else {"rounding": i32_attr(ROUNDINGS["rtne"])}
            return self.value("tt.fp_to_fp", [value], result, **rounding)
        return self.value("arith.extf" if wider else "arith.truncf", [value], result)

    def bitcast(self, value: ir.Value, dtype: str) -> ir.Value:
        return self.value("tt.bitcast", [value], self._like(value, dtype))

    def cast(self, name: str, value: ir.Value, dtype: str) -> ir.Value:
        """A conversion of the arith dialect by its name: extui, trunci, sitofp, ..."""
        return self.value(f"arith.{name}", [value], self._like(value, dtype))

    # Memory

    def offset(self, pointer: ir.Value, elements: Operand) -> ir.Value:
        """Pointers moved by `elements`."""
        if not isinstance(elements, ir.Value):
            elements = self.full(elements)
        shape = _joint([block_of(pointer).shape, block_of(elements).shape])
        pointer, elements = self.broadcast(pointer, shape), self.broadcast(elements, shape)
        return self.value("tt.addptr", [pointer, elements], pointer.type)

    def load(self, pointer: ir.Value, mask: ir.Value | None = None) -> ir.Value:
        """What is pointed to; zero where the mask is false."""
        at = block_of(pointer)
        assert at.pointee is not None
        operands = [pointer]
        if mask is not None:
            operands += [
                self.broadcast(mask, at.shape),
                self.full(0, str(at.pointee), at.shape),
            ]
        return self.value(
            "tt.load",
            operands,
            at.with_dtype(at.pointee).type(),
            boundaryCheck=ir.DenseI32ArrayAttr.get([]),
            cache=i32_attr(_CACHE),
            evict=i32_attr(_EVICT),
            isVolatile=ir.BoolAttr.get(False),
            operandSegmentSizes=ir.DenseI32ArrayAttr.get([1] + [int(mask is not None)] * 2),
        )

    def store(self, pointer: ir.Value, value: ir.Value, mask: ir.Value | None = None) -> None:
        shape = block_of(pointer).shape
        operands = [pointer, self.broadcast(value, shape)]
        if mask is not None:
            operands.append(self.broadcast(mask, shape))
        self.op(
            "tt.store",
            operands,
            [],
            boundaryCheck=ir.DenseI32ArrayAttr.get([]),
            cache=i32_attr(_CACHE),
            evict=i32_attr(_EVICT),
        )

    def atomic(self, name: str, pointer: ir.Value, value: Operand, order: str) -> ir.Value:
        """What the i32 at `pointer` was before it was changed, in one step for the whole GPU.

        Names and orders are those of ATOMIC_OPS and ATOMIC_ORDERS.  One thread does it: a barrier
        before one that releases makes it speak for all threads of the program.
        """
        value = value if isinstance(value, ir.Value) else self.full(value)
        return self.value(
            "tt.atomic_rmw",
            [pointer, value],
            value.type,
            atomic_rmw_op=i32_attr(ATOMIC_OPS[name]),
            scope=i32_attr(ATOMIC_SCOPES["gpu"]),
            sem=i32_attr(ATOMIC_ORDERS[order]),
        )

    def barrier(self) -> None:
        """All threads of the program meet here; Triton 3.6 and 3.9 both read this spelling."""
        self.op("gpu.barrier", [], [])

    def descriptor(
        self, base: ir.Value, extents: Sequence[Operand], row_stride: int, block: Shape
    ) -> ir.Value:
        """A descriptor of the row-major matrix at `base`, copied in blocks of `block`."""
        sizes = [e if isinstance(e, ir.Value) else self.full(e) for e in extents]
        strides = [self.full(row_stride, "i64"), self.full(1, "i64")]
        return self.value(
            "tt.make_tensor_descriptor",
            [base, *sizes, *strides],
            desc_type(block, pointee_of(base.type)),
            operandSegmentSizes=ir.DenseI32ArrayAttr.get([1, 2, 2]),
        )

    def load_block(self, descriptor: ir.Value, row: ir.Value, column: ir.Value) -> ir.Value:
        return self.value(
            "tt.descriptor_load",
            [descriptor, row, column],
            desc_block(descriptor.type).type(),
            cache=i32_attr(_CACHE),
            evict=i32_attr(_EVICT),
        )

    def store_block(
        self, descriptor: ir.Value, value: ir.Value, row: ir.Value, column: ir.Value
    ) -> None:
        self.op("tt.descriptor_store", [descriptor, value, row, column], [])

    # Products, reductions, control flow

    def dot(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a [M, K] times b [K, N] plus c; f32 factors are multiplied as f32, not as tf32."""
        ieee = str(block_of(a).dtype) == "f32"
        return self.value(
            "tt.dot",
            [a, b, c],
            c.type,
            inputPrecision=i32_attr(INPUT_PRECISIONS["ieee" if ieee else "tf32"]),
            maxNumImpreciseAcc=i32_attr(FULL_PRECISION_STEPS),
        )

    def reduce(self, value: ir.Value, axis: int, combine: str) -> ir.Value:
        """Fold dimension `axis` with the operation `combine`, such as "arith.addf"."""
        block = block_of(value)
        result = Block((*block.shape[:axis], *block.shape[axis + 1 :]), block.dtype).type()
        op = self.op("tt.reduce", [value], [result], regions=1, axis=i32_attr(axis))
        self._combine(op, combine, "tt.reduce_return")
        return op.result

    def scan(self, value: ir.Value, axis: int, combine: str) -> ir.Value:
        """Each element folded with those before it along `axis`, by the operation `combine`."""
        reverse = ir.BoolAttr.get(False)
        op = self.op(
            "tt.scan", [value], [value.type], regions=1, axis=i32_attr(axis), reverse=reverse
        )
        self._combine(op, combine, "tt.scan_return")
        return op.result

    def _combine(self, op: ir.Operation, combine: str, terminator: str) -> None:
        """The region of a reduction or scan that applies `combine`."""
        dtype = block_of(op.operands[0]).dtype
        body = op.regions[0].blocks.append(dtype, dtype, arg_locs=[op.location] * 2)
        with ir.InsertionPoint(body):
            folded = self.value(combine, list(body.arguments), dtype)
            self.op(terminator, [folded], [])

    def when(self, condition: ir.Value, body: Callable[[], None]) -> None:
        """Do `body` if a scalar of i1 is true."""
        op = self.op("scf.if", [condition], [], regions=2)
        with ir.InsertionPoint(op.regions[0].blocks.append()):
            body()
            self.op("scf.yield", [], [])

    def loop(
        self,
        bounds: tuple[Operand, Operand, Operand],
        carried: Sequence[ir.Value],
        body: Callable[[ir.Value, list[ir.Value]], Sequence[ir.Value]],
        **attributes: ir.Attribute,
    ) -> list[ir.Value]:
        """for i in range(start, stop, step): carried = body(i, carried), with i32 bounds."""
        limits = [v if isinstance(v, ir.Value) else self.full(v) for v in bounds]
        types = [v.type for v in carried]
        op = self.op("scf.for", [*limits, *carried], types, regions=1, **attributes)
        arguments = [self.type("i32"), *types]
        block = op.regions[0].blocks.append(*arguments, arg_locs=[op.location] * len(arguments))
        with ir.InsertionPoint(block):
            counter, *values = block.arguments
            self.op("scf.yield", list(body(counter, values)), [])
        return list(op.results)


def _joint(shapes: Sequence[Shape]) -> Shape:
    """The shape to which all of `shapes` broadcast; scalars go with any."""
    ranked = [s for s in shapes if s]
    if not ranked:
        return ()
    assert len({len(s) for s in ranked}) == 1, f"ranks differ: {ranked}"
    joint = tuple(max(extents) for extents in zip(*ranked, strict=True))
    assert all(a in (b, 1) for s in ranked for a, b in zip(s, joint, strict=True)), ranked
    return joint
