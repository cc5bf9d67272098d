"""A `tt.func` read once from MLIR into plain instructions, so that loops cost no MLIR calls."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.interpreter.types import Type, parse_type

TERMINATORS = frozenset(
    {
        "scf.yield",
        "scf.condition",
        "tt.return",
        "tt.reduce.return",
        "tt.reduce_return",  # as our own dialect has to call it
        "tt.scan.return",
    }
)
HINTS = ("tt.divisibility", "tt.contiguity", "tt.constancy")
"""Promises about an integer value, on which Triton builds the width of its memory accesses."""


@dataclass(slots=True)
class Instruction:
    """One operation: SSA values are slot numbers, attributes are Python values."""

    name: str
    location: str
    operands: tuple[int, ...]
    operand_types: tuple[Type, ...]
    results: tuple[int, ...]
    result_types: tuple[Type, ...]
    attributes: dict[str, Any]
    blocks: "tuple[Block | None, ...]"
    dead: tuple[int, ...] = ()  # slots that nothing reads afterwards
    hints: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f'"{self.name}" at {self.location}'

    def refuse(self, reason: str) -> QfuseError:
        """The error of an operation that cannot be interpreted, to be raised."""
        return QfuseError(f"{self}: {reason}")

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value; QfuseError where it is absent and has no default."""
        value = self.attributes.get(name, default)
        if value is None:
            raise self.refuse(f"attribute '{name}' is missing")
        return value


@dataclass(slots=True)
class Block:
    """A block of a region; the last instruction is its terminator."""

    arguments: tuple[int, ...]
    instructions: list[Instruction]
    uses: frozenset[int]  # slots read in it, nested blocks included


@dataclass(slots=True)
class Kernel:
    """A `tt.func`."""

    name: str
    argument_types: tuple[Type, ...]
    divisibility: tuple[int, ...]  # tt.divisibility of each argument, 1 where not given
    body: Block
    largest: int  # elements of its largest tensor


def read_kernel(module: ir.Module | str, name: str) -> Kernel:
    """Read the `tt.func` of that name from a module or its text; QfuseError names what is wrong."""
    if not isinstance(module, str):
        return _find(module, name)
    with ir.Context() as context:
        context.allow_unregistered_dialects = True
        try:
            parsed = ir.Module.parse(module)
        except ir.MLIRError as error:
            reason = str(error).split("\n")
            raise QfuseError(f"the kernel's text does not parse: {' '.join(reason[:2])}") from None
        return _find(parsed, name)


def _find(module: ir.Module, name: str) -> Kernel:
    names = []
    for op in module.body.operations:
        if op.operation.name != "tt.func":
            continue
        names.append(ir.StringAttr(op.attributes["sym_name"]).value)
        if names[-1] == name:
            return _Reader().kernel(op.operation, name)
    raise QfuseError(f"no tt.func '{name}' in the module; it has {', '.join(names) or 'none'}")


class _Reader:
    def __init__(self) -> None:
        self.slots: dict[ir.Value, int] = {}
        self.largest = 1

    def kernel(self, op: ir.Operation, name: str) -> Kernel:
        if len(op.regions[0].blocks) != 1:
            raise QfuseError(f"tt.func '{name}': control flow must be scf, not several blocks")
        arguments = op.regions[0].blocks[0].arguments
        types = tuple(parse_type(str(argument.type)) for argument in arguments)
        body = self.block(op.regions[0].blocks[0])
        divisibility = [1] * len(types)
        if "arg_attrs" in op.attributes:
            for position, attrs in enumerate(ir.ArrayAttr(op.attributes["arg_attrs"])):
                attrs = ir.DictAttr(attrs)
                if "tt.divisibility" in attrs:
                    divisibility[position] = ir.IntegerAttr(attrs["tt.divisibility"]).value
        return Kernel(name, types, tuple(divisibility), body, self.largest)

    def slot(self, value: ir.Value) -> int:
        return self.slots.setdefault(value, len(self.slots))

    def type(self, value: ir.Value) -> Type:
        found = parse_type(str(value.type))
        if found.kind != "descriptor":
            self.largest = max(self.largest, int(np.prod(found.shape, dtype=np.int64)))
        return found

    def block(self, block: ir.Block) -> Block:
        arguments = tuple(self.slot(argument) for argument in block.arguments)
        for argument in block.arguments:
            self.type(argument)
        instructions = [self.instruction(op.operation) for op in block.operations]
        own = {*arguments, *(slot for ins in instructions for slot in ins.results)}
        seen: set[int] = set()
        for instruction in reversed(instructions):
            used = {*instruction.operands, *instruction.results}
            for inner in instruction.blocks:
                used |= inner.uses if inner else frozenset()
            instruction.dead = tuple(slot for slot in used - seen if slot in own)
            seen |= used
        return Block(arguments, instructions, frozenset(seen))

    def instruction(self, op: ir.Operation) -> Instruction:
        location = str(op.location).removeprefix("loc(").removesuffix(")")
        try:
            blocks = tuple(self.region(region) for region in op.regions)
            instruction = Instruction(
                name=op.name,
                location=location,
                operands=tuple(self.slot(value) for value in op.operands),
                operand_types=tuple(self.type(value) for value in op.operands),
                results=tuple(self.slot(value) for value in op.results),
                result_types=tuple(self.type(value) for value in op.results),
                attributes={},
                blocks=blocks,
            )
            for name in op.attributes:
                attribute = op.attributes[name]
                if name in HINTS:
                    instruction.hints[name] = _integers(attribute)
                elif op.name == "arith.constant" and name == "value":
                    instruction.attributes[name] = _constant(attribute, instruction.result_types[0])
                else:
                    instruction.attributes[name] = _plain(attribute)
        except QfuseError as error:
            if " at " in str(error):
                raise
            raise QfuseError(f'"{op.name}" at {location}: {error}') from None
        return instruction

    def region(self, region: ir.Region) -> Block | None:
        if len(region.blocks) > 1:
            raise QfuseError("a region with several blocks; control flow must be scf")
        return self.block(region.blocks[0]) if len(region.blocks) else None


def _plain(attribute: ir.Attribute) -> Any:
    if isinstance(attribute, ir.BoolAttr | ir.IntegerAttr | ir.FloatAttr | ir.StringAttr):
        return attribute.value
    if isinstance(attribute, ir.DenseI32ArrayAttr | ir.DenseI64ArrayAttr):
        return tuple(attribute)
    return True if isinstance(attribute, ir.UnitAttr) else str(attribute)


def _integers(attribute: ir.Attribute) -> tuple[int, ...]:
    if isinstance(attribute, ir.IntegerAttr):
        return (attribute.value,)
    return tuple(int(x) for x in np.array(attribute).reshape(-1))


def _constant(attribute: ir.Attribute, of: Type) -> np.ndarray:
    """An `arith.constant`'s value with a leading axis of one program."""
    shape = (1, *of.shape)
    if not of.shape:
        return _cast([_plain(attribute)], of)
    if not isinstance(attribute, ir.DenseElementsAttr):
        raise QfuseError("a tensor constant must be dense<...>")
    if attribute.is_splat:
        return np.broadcast_to(_cast([_plain(attribute.get_splat_value())], of), shape)
    try:
        values = np.array(attribute).reshape(shape)
    except (ValueError, TypeError) as error:
        raise QfuseError(f"a {of.element} constant with differing elements: {error}") from None
    return _cast(values, of)


def _cast(values: Sequence[Any] | np.ndarray, of: Type) -> np.ndarray:
    # An i8 of -1 may arrive as 255: go through a wide integer, which wraps.
    return np.array(values, None if of.is_float else np.int64).astype(of.dtype)
