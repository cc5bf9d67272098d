"""`qfuse-convert-to-blas`: products that dispatch gave to a library become calls of it."""

from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.dispatch.epilogue_form import read_epilogue
from qfuse.compiler.dispatch.rules import LIBRARY
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.dispatch import DISPATCH, products
from qfuse.dialects.bindings import ir
from qfuse.dialects.epilogue_op import build_epilogue
from qfuse.dialects.library_ops import ChooseOp, LibraryCallOp, ResultOp
from qfuse.dialects.matmul_op import inputs_of
from qfuse.dialects.quantization_ops import concat_rows
from qfuse.dialects.types import Shaped, shaped


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
    the call.  A constant scale, a bias and an activation go with the call; another epilogue, where
    dispatch says `apart`, follows it as a `qfuse.epilogue` with the product's region.  Does nothing
    to products without decisions, or with none for a library.
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
    call, apart = _text(to_library[0], "call"), "apart" in to_library[0]
    chosen = [d for d in to_library if (_text(d, "call"), "apart" in d) == (call, apart)]
    for left in (d for d in to_library if d not in chosen):
        cause = f"from M = {_rows(left)[0]} on it would be {_text(left, 'call')}, elsewhere {call}"
        cure = "let one call serve all rows that go to a library"
        remarks.refused("convert-to-blas", product, product, cause, cure)
    remarks.fired("convert-to-blas", product, remarks.argument_name(product.operands[1]), call)
    make = _call_then_epilogue if apart else _library_call
    with ir.InsertionPoint(product), product.location:
        choice = ir.Operation.create(
            ChooseOp.OPERATION_NAME,
            results=[product.results[0].type],
            operands=[product.operands[0]],
            attributes={
                "call": ir.StringAttr.get(call),
                "ranges": ir.DenseI64ArrayAttr.get([n for d in chosen for n in _rows(d)]),
            },
            regions=2,
        )
    product.results[0].replace_all_uses_with(choice.results[0])
    library, kernel = (region.blocks.append() for region in choice.regions)
    with ir.InsertionPoint(library), product.location:
        _result(make(product, call))
    with ir.InsertionPoint(kernel), product.location:
        copy = product.clone()
        del copy.attributes[DISPATCH]
        _result(copy.results[0])
    product.erase()


def _library_call(product: ir.Operation, call: str) -> ir.Value:
    """The product, its scale, its bias and its activation."""
    form = read_epilogue(product)
    bias = None if form.bias is None else _extra(product)[form.bias]
    y_type = product.results[0].type
    return _call(product, call, y_type, bias, form.activation or "none", form.scale)


def _call_then_epilogue(product: ir.Operation, call: str) -> ir.Value:
    """The accumulators, rounded as the epilogue does first, and a kernel for the rest of it."""
    w = shaped(product.operands[1].type)
    rows = shaped(product.results[0].type).rows
    y_type = Shaped((*rows, w.shape[0]), read_epilogue(product).rounded_to).type()
    y = _call(product, call, y_type, None, "none")
    parts = list(ir.DenseI64ArrayAttr(product.attributes["parts"]))
    starts = [concat_rows([*parts[:i], 0], w) if i else 0 for i in range(len(parts))]
    (value,) = build_epilogue(y, product, _extra(product), starts)
    return value


def _call(
    product: ir.Operation,
    call: str,
    type_: ir.Type,
    bias: ir.Value | None,
    activation: str,
    scale: float = 1.0,
) -> ir.Value:
    inputs = inputs_of(product, product.operands)
    given = [inputs["x"], inputs["w"], inputs.get("indptr"), bias]
    scaled = {"scale": ir.FloatAttr.get_f32(scale)} if scale != 1 else {}
    return ir.Operation.create(
        LibraryCallOp.OPERATION_NAME,
        results=[type_],
        operands=[value for value in given if value is not None],
        attributes={
            "call": ir.StringAttr.get(call),
            "activation": ir.StringAttr.get(activation),
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([int(v is not None) for v in given]),
            **scaled,
        },
    ).result


def _extra(product: ir.Operation) -> list[ir.Value]:
    """The operands that the epilogue reads."""
    inputs = inputs_of(product, product.operands)
    return list(product.operands)[sum(v is not None for v in inputs.values()) :]


def _result(value: ir.Value) -> None:
    ir.Operation.create(ResultOp.OPERATION_NAME, operands=[value])


def _text(decision: ir.DictAttr, field: str) -> str:
    return ir.StringAttr(decision[field]).value


def _rows(decision: ir.DictAttr) -> tuple[int, int]:
    last = ir.IntegerAttr(decision["last_m"]).value if "last_m" in decision else -1
    return ir.IntegerAttr(decision["first_m"]).value, last
