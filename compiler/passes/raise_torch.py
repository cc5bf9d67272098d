"""`qfuse-raise-torch`: what qfuse owns leaves the torch dialect, the rest stays in it."""

from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.raise_elementwise import ELEMENTWISE
from qfuse.compiler.passes.raise_glu import GLUS
from qfuse.compiler.passes.raise_linear import LINEAR, LINEAR_OF_ROWS
from qfuse.compiler.passes.raise_moe import MOE
from qfuse.compiler.passes.raise_norm import BARE_NORMS, NORMS
from qfuse.compiler.passes.raise_router import ROUTERS
from qfuse.compiler.passes.raise_split import SPLIT
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Verdict
from qfuse.compiler.torch_ir import (
    ASSERTIONS,
    CASTS,
    FROM_BUILTIN,
    TO_BUILTIN,
    drop_dead,
    find_operations,
)
from qfuse.dialects.bindings import ir


@dataclass(frozen=True)
class RaiseTorch(Pass):
    """Turn linears, routers, experts, norms and element-wise operations into qfuse's.

    Before::

        %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %scale, %none, %block, ...)
           : (!torch.vtensor<[1,?,512],bf16>, ...) -> !torch.vtensor<[1,?,1400],bf16>

    After::

        %wq = "qfuse.pack"(%w', %scale')
        %y' = "qfuse.matmul"(%x', %wq) {qfuse.input_scheme = #qfuse.scheme<array<i64: 1, 128>...>}
        %y = torch_c.from_builtin_tensor %y'

    An element-wise operation is raised only next to a qfuse operation, numbers in it become
    constants, and a product of which it reads a part is one of parts.  A linear layer that is not
    quantized becomes a product unless something else reads its weight, too; with `rows`, for
    kernels that do not want weights packed, also then.  A torch operation that matches nothing
    stays as it is and runs on torch.
    """

    name: ClassVar[str] = "qfuse-raise-torch"

    rows: bool = False

    def run(self, module: ir.Operation) -> None:
        normalize(module)
        # Norms first: their squares and products are element-wise operations, too.
        Patterns(NORMS).apply(module)
        drop_dead(module)
        Patterns(BARE_NORMS).apply(module)
        linear = LINEAR_OF_ROWS if self.rows else LINEAR
        Patterns([*linear, *ROUTERS, *MOE, *SPLIT, fold_round_trip]).apply(module)
        drop_dead(module)
        # Clamped GLUs before what they are made of.
        Patterns([*GLUS, fold_round_trip]).apply(module)
        drop_dead(module)
        Patterns([*ELEMENTWISE, fold_round_trip]).apply(module)
        drop_dead(module)


def fold_round_trip(p: Pattern) -> None:
    """to_builtin(from_builtin(x)) is x."""
    inner = p.op(FROM_BUILTIN, x := p.value())
    outer = p.op(TO_BUILTIN, p.result(inner))
    p.require(same_type, outer, x)
    p.rewrite(outer, forward, x)


def same_type(outer: ir.Operation, x: ir.Value) -> Verdict:
    return None if outer.results[0].type == x.type else MISMATCH


def forward(rewriter, outer: ir.Operation, x: ir.Value) -> None:
    rewriter.replace_op(outer, [x])


def normalize(module: ir.Operation) -> None:
    """Write the casts of different tracers one way, and drop assertions about metadata."""
    found = find_operations(module, lambda op: op.name in CASTS or op.name in ASSERTIONS)
    for op in found:
        if op.name in ASSERTIONS:
            op.erase()
        else:
            CASTS[op.name](op)
