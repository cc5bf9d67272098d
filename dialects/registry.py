"""Make every dialect that qfuse programs use known to a context."""

from qfuse.dialects import (
    attention_ops,
    elementwise_ops,
    epilogue_op,
    library_ops,
    matmul_op,
    moe_ops,
    norm_ops,
    quantization_ops,
    tt,
)
from qfuse.dialects.bindings import ir, passmanager, torch_dialect
from qfuse.dialects.dialect import QFuse

OPS: tuple[type[ir.OpView], ...] = (
    quantization_ops.PackOp,
    quantization_ops.UnpackOp,
    quantization_ops.QuantizeOp,
    quantization_ops.TensorScaleOp,
    quantization_ops.DequantizeOp,
    quantization_ops.ConcatOp,
    quantization_ops.AppendExpertOp,
    matmul_op.MatmulOp,
    matmul_op.YieldOp,
    matmul_op.WithScaleOp,
    elementwise_ops.AddOp,
    elementwise_ops.SubOp,
    elementwise_ops.MulOp,
    elementwise_ops.DivOp,
    elementwise_ops.SiluOp,
    elementwise_ops.GeluOp,
    elementwise_ops.GeluTanhOp,
    elementwise_ops.ReluOp,
    elementwise_ops.SigmoidOp,
    elementwise_ops.TanhOp,
    elementwise_ops.ExpOp,
    elementwise_ops.NegOp,
    elementwise_ops.SquareOp,
    elementwise_ops.ClampOp,
    elementwise_ops.CastOp,
    elementwise_ops.GluOp,
    norm_ops.RmsNormOp,
    norm_ops.RopeOp,
    attention_ops.AttentionOp,
    moe_ops.SelectExpertsOp,
    moe_ops.RouteOp,
    moe_ops.GroupMatmulOp,
    moe_ops.GroupMatmulCombineOp,
    moe_ops.CombineOp,
    epilogue_op.EpilogueOp,
    library_ops.LibraryCallOp,
    library_ops.ChooseOp,
    library_ops.ResultOp,
)
"""Every operation of the dialect, for tools and tests that list them."""

COMPUTE_OPS = frozenset(
    op.OPERATION_NAME
    for op in OPS
    if op
    not in (
        quantization_ops.PackOp,
        quantization_ops.UnpackOp,
        quantization_ops.ConcatOp,
        quantization_ops.AppendExpertOp,
        matmul_op.YieldOp,
        matmul_op.WithScaleOp,
        library_ops.LibraryCallOp,
        library_ops.ChooseOp,
        library_ops.ResultOp,
    )
)
"""Operations that become a kernel of ours each; the others prepare, only name, or call."""

# `torch_c` enters a context only as the dependent dialect of some pass.
_LOADS_TORCH_C = "builtin.module(torch-func-backend-type-conversion)"


def load_all() -> None:
    """Load the qfuse, torch and Triton dialects into the current context, once."""
    context = ir.Context.current
    if context.is_dialect_loaded(QFuse.DIALECT_NAMESPACE):
        return
    torch_dialect.register_dialect(context)
    with ir.Location.unknown():
        empty = ir.Module.create()
        passmanager.PassManager.parse(_LOADS_TORCH_C).run(empty.operation)
    QFuse.load()
    tt.load()
