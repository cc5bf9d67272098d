"""`qfuse-convert-to-blas`: products that dispatch gave to a library become calls of it."""

from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.dispatch.epilogue_form import read_epilogue
from qfuse.compiler.dispatch.rules import LIBRARY
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.dispatch import DISPATCH, products
from qfuse.dialects.bindings import ir
from qfuse.dialects.library_ops import ChooseOp, LibraryCallOp, ResultOp
from qfuse.dialects.matmul_op import inputs_of


@dataclass(frozen=True)
class ConvertToBlas(Pass):
    """Carry out what `qfuse-dispatch` wrote: library calls, or a choice by the number of rows.

    Before::

        %y = "qfuse.matmul"(%x, %w) {qfuse.dispatch = [
               {first_m = 1, last_m = 1, backend = "kernel", ...},
               {first_m = 2, backend = "library", call = "mm", ...}]} ...

    After::

        %y = "qfuse.choose"(%x) ({
          %0 = "qfuse.library_call"(%x, %w) {call = "mm", ...}
          "qfuse.result"(%0)
        }, {
          %0 = "qfuse.matmul"(%x, %w) ...
          "qfuse.result"(%0)
        }) {call = "mm", ranges = array<i64: 2, -1>}

    The kernel stays in the second region for all other rows, and for a machine whose library lacks
    the call.  A product that has none (on the CPU, an unquantized one) becomes the call alone.
    A bias and an activation go with the call.  Does nothing to products without decisions, or with
    none for a library.
    """

    name: ClassVar[str] = "qfuse-convert-to-blas"

    def run(self, module: ir.Operation) -> None:
        for product in products(module):
            if DISPATCH in product.attributes:
                _convert(product)


def _convert(product: ir.Operation) -> None:
    decisions = [ir.DictAttr(d) for d in ir.ArrayAttr(product.attributes[DISPATCH])]
    to_library = [d for d in decisions if _text(d, "backend") == LIBRARY]
    if not to_library:
        return
    call = _text(to_library[0], "call")
    ranges = [n for d in to_library if _text(d, "call") == call for n in _rows(d)]
    always = len(to_library) == len(decisions)
    remarks.fired("convert-to-blas", product, remarks.argument_name(product.operands[1]), call)
    with ir.InsertionPoint(product), product.location:
        if always and call == "linear":
            value = _library_call(product, call)
            product.results[0].replace_all_uses_with(value)
            product.erase()
            return
        type_ = product.results[0].type
        choice = ir.Operation.create(
            ChooseOp.OPERATION_NAME,
            results=[type_],
            operands=[product.operands[0]],
            attributes={
                "call": ir.StringAttr.get(call),
                "ranges": ir.DenseI64ArrayAttr.get(ranges),
            },
            regions=2,
        )
    product.results[0].replace_all_uses_with(choice.results[0])
    library, kernel = (region.blocks.append() for region in choice.regions)
    with ir.InsertionPoint(library), product.location:
        _result(_library_call(product, call))
    with ir.InsertionPoint(kernel), product.location:
        copy = product.clone()
        del copy.attributes[DISPATCH]
        _result(copy.results[0])
    product.erase()


def _library_call(product: ir.Operation, call: str) -> ir.Value:
    form = read_epilogue(product)
    x, w, *routing = inputs_of(product)
    indptr = routing[0] if routing else None
    before = sum(value is not None for value in (x, w, *routing))
    bias = None if form.bias is None else product.operands[before + form.bias]
    given = [x, w, indptr, bias]
    return ir.Operation.create(
        LibraryCallOp.OPERATION_NAME,
        results=[product.results[0].type],
        operands=[value for value in given if value is not None],
        attributes={
            "call": ir.StringAttr.get(call),
            "activation": ir.StringAttr.get(form.activation or "none"),
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([int(v is not None) for v in given]),
        },
    ).result


def _result(value: ir.Value) -> None:
    ir.Operation.create(ResultOp.OPERATION_NAME, operands=[value])


def _text(decision: ir.DictAttr, field: str) -> str:
    return ir.StringAttr(decision[field]).value


def _rows(decision: ir.DictAttr) -> tuple[int, int]:
    last = ir.IntegerAttr(decision["last_m"]).value if "last_m" in decision else -1
    return ir.IntegerAttr(decision["first_m"]).value, last
