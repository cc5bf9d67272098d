"""Triton's `tt` dialect, as far as we emit it: the list of operations, and loading it."""

from qfuse.dialects import tt_compute_ops, tt_memory_ops, tt_ops
from qfuse.dialects.bindings import ir
from qfuse.dialects.tt_dialect import Triton

OPS: tuple[type[ir.OpView], ...] = (
    tt_ops.FuncOp,
    tt_ops.ReturnOp,
    tt_ops.GetProgramIdOp,
    tt_ops.GetNumProgramsOp,
    tt_ops.MakeRangeOp,
    tt_ops.SplatOp,
    tt_ops.BroadcastOp,
    tt_ops.ExpandDimsOp,
    tt_ops.JoinOp,
    tt_ops.ReshapeOp,
    tt_ops.TransOp,
    tt_ops.AddPtrOp,
    tt_compute_ops.DotOp,
    tt_compute_ops.ReduceOp,
    tt_compute_ops.ReduceReturnOp,
    tt_compute_ops.ScanOp,
    tt_compute_ops.ScanReturnOp,
    tt_compute_ops.FpToFpOp,
    tt_compute_ops.BitcastOp,
    tt_compute_ops.PreciseDivFOp,
    tt_compute_ops.PreciseSqrtOp,
    tt_compute_ops.ElementwiseInlineAsmOp,
    tt_compute_ops.ExternElementwiseOp,
    tt_memory_ops.LoadOp,
    tt_memory_ops.StoreOp,
    tt_memory_ops.AtomicRmwOp,
    tt_memory_ops.MakeTensorDescriptorOp,
    tt_memory_ops.DescriptorLoadOp,
    tt_memory_ops.DescriptorStoreOp,
)
"""Every operation of the subset, for tools and tests that list them."""


def load() -> None:
    """Make the dialect known to the current context; a second call does nothing."""
    if not ir.Context.current.is_dialect_loaded(Triton.DIALECT_NAMESPACE):
        Triton.load()
