"""A module that holds one kernel."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from qfuse.dialects import tt
from qfuse.dialects.bindings import ir, passmanager
from qfuse.dialects.tt_dialect import pointer_type
from qfuse.lowering.triton.builder import Builder, i32_attr
from qfuse.lowering.triton.gpu import Gpu

ALIGNMENT = 16
"""Bytes that every pointer given to a kernel is a multiple of; the launcher checks it."""


# Triton runs no passes on IR that is handed to it as such, not even these.
_CLEANUP = "builtin.module(canonicalize,cse)"

_SPELLINGS = {f'"tt.{fold}_return"': f'"tt.{fold}.return"' for fold in ("reduce", "scan")}
"""Names of operations with two dots, which IRDL does not take, as ours and as Triton's."""


@dataclass
class OpenKernel:
    """A kernel while its body is emitted: pointers first, then i32 arguments."""

    builder: Builder
    arguments: list[ir.Value]
    module: ir.Module


@contextmanager
def kernel(gpu: Gpu, name: str, pointers: Sequence[str], integers: int = 1) -> Iterator[OpenKernel]:
    """A kernel in the current context, verified and simplified when its body is complete.

    It takes a pointer to each of the element types `pointers`, then `integers` arguments of i32.
    """
    with ir.Location.unknown():
        tt.load()
        module = ir.Module.create()
        builder = Builder(gpu, module.context)
        types = [pointer_type(ir.Type.parse(p)) for p in pointers]
        types += [builder.type("i32")] * integers
        aligned = ir.DictAttr.get({"tt.divisibility": i32_attr(ALIGNMENT)})
        attributes = [aligned] * len(pointers) + [ir.DictAttr.get({})] * integers
        with ir.InsertionPoint(module.body):
            function = builder.op(
                "tt.func",
                [],
                [],
                regions=1,
                sym_name=ir.StringAttr.get(name),
                sym_visibility=ir.StringAttr.get("public"),
                function_type=ir.TypeAttr.get(ir.FunctionType.get(types, [])),
                arg_attrs=ir.ArrayAttr.get(attributes),
            )
        locations = [function.location] * len(types)
        block = function.regions[0].blocks.append(*types, arg_locs=locations)
        with ir.InsertionPoint(block):
            yield OpenKernel(builder, list(block.arguments), module)
            builder.op("tt.return", [], [])
        module.operation.verify()
        passmanager.PassManager.parse(_CLEANUP).run(module.operation)


def module_text(module: ir.Module) -> str:
    """The module as text for `text.respell`; operations are named as in Triton."""
    text = str(module)
    for ours, tritons in _SPELLINGS.items():
        text = text.replace(ours, tritons)
    return text


def read_module(text: str) -> ir.Module:
    """The inverse of `module_text`, in the current context; raises ir.MLIRError for other text."""
    for ours, tritons in _SPELLINGS.items():
        text = text.replace(tritons, ours)
    return ir.Module.parse(text)
