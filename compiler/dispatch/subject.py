"""What dispatch looks at: a product and the machine it is for, as plain data."""

from dataclasses import dataclass

from qfuse.compiler import remarks
from qfuse.compiler.dispatch.epilogue_form import EpilogueForm, read_epilogue
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import inputs_of
from qfuse.dialects.types import STORAGE_BITS, Shaped, is_float, shaped
from qfuse.dialects.verify import DYNAMIC


@dataclass(frozen=True)
class Machine:
    """What products are to run on, and what may be used there.

    `kind` is cpu, cuda or hip; `arch` is sm_90, gfx942, ...; "" for cpu.
    """

    kind: str
    arch: str = ""
    blas: str = "auto"
    roundings: str = "exact"

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}" if self.arch else self.kind

    @property
    def is_gpu(self) -> bool:
        return self.kind in ("cuda", "hip")

    @property
    def library(self) -> str:
        """The library behind torch's products there."""
        return {"cuda": "cuBLAS", "hip": "hipBLAS"}.get(self.kind, "oneDNN")


@dataclass(frozen=True)
class Subject:
    """A product: x [M, K] times the transpose of w [N, K], or that of each row's expert.

    `rows` is M where it is static.  `single` is how many rows one token has: its experts where x is
    [T, experts, K], else one.  `gathered`: the product takes its rows from their tokens.  `name`
    tells it apart in a model.
    """

    machine: Machine
    op: str
    x: Shaped
    w: Shaped
    result: Shaped
    parts: tuple[int, ...]
    epilogue: EpilogueForm
    rows: int | None = None
    single: int = 1
    gathered: bool = False
    name: str = ""

    @property
    def n(self) -> int:
        return self.w.shape[-2]

    @property
    def k(self) -> int:
        return self.w.shape[-1]

    @property
    def is_plain(self) -> bool:
        return is_float(self.x) and is_float(self.w)

    @property
    def dequantizes(self) -> bool:
        """Whether codes of w become numbers in the kernel before they are multiplied."""
        if self.w.scheme is None:
            return False
        return not self.x.quantized or STORAGE_BITS[self.w.dtype] < 8

    @property
    def scheme(self) -> str:
        """x and w in words: "f8E4M3FN 1x128 by f8E4M3FN 128x128"."""
        return f"{operand_text(self.x)} by {operand_text(self.w)}"


def operand_text(value: Shaped) -> str:
    """`bf16`, `f8E4M3FN 128x128`, `int4 group 32`, `q4_k`."""
    if value.scheme is None:
        return value.dtype
    scheme = value.scheme
    if scheme.packing in ("q4_k", "q6_k", "q8_1"):
        return scheme.packing
    rows, columns = scheme.block
    if columns >= value.shape[-1]:
        blocks = "per row" if rows == 1 else f"per {rows} rows"
    elif scheme.packing in ("int4", "fp4"):
        blocks = f"group {columns}"
    else:
        blocks = f"{rows}x{columns}"
    stored = value.dtype if scheme.packing == "none" else scheme.packing
    return f"{stored} {blocks}"


def read_subject(product: ir.Operation, machine: Machine) -> Subject:
    """The product `product` on `machine`."""
    given = inputs_of(product, product.operands)
    x, w = given["x"], given["w"]
    assert x is not None and w is not None
    result = shaped(product.results[0].type)
    rows = 1
    for extent in result.rows:
        rows = DYNAMIC if DYNAMIC in (rows, extent) else rows * extent
    return Subject(
        machine,
        product.name,
        shaped(x.type),
        shaped(w.type),
        result,
        tuple(ir.DenseI64ArrayAttr(product.attributes["parts"])),
        read_epilogue(product),
        None if rows == DYNAMIC else rows,
        _rows_of_a_token(product, result),
        given.get("tokens") is not None,
        weight_name(w),
    )


def _rows_of_a_token(product: ir.Operation, result: Shaped) -> int:
    """Those of its experts, where they are a dimension of the result."""
    of_experts = product.name == "qfuse.group_matmul" and len(result.rows) == 2
    return result.rows[1] if of_experts and result.rows[1] != DYNAMIC else 1


def weight_name(weight: ir.Value) -> str:
    """The names of the parameters that a weight is made of, "" where they have none."""
    if isinstance(weight, ir.BlockArgument) or weight.owner.operation.name != "qfuse.concat":
        return remarks.argument_name(weight)
    return " + ".join(filter(None, map(weight_name, weight.owner.operation.operands)))
