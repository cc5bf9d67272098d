"""Every pass, by the name `qfuse-opt` and pipelines use; one pass per file of the same name."""

from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.choose_scale_layout import ChooseScaleLayout
from qfuse.compiler.passes.convert_to_blas import ConvertToBlas
from qfuse.compiler.passes.convert_to_cpu import ConvertToCpu
from qfuse.compiler.passes.convert_to_triton import ConvertToTriton
from qfuse.compiler.passes.dispatch import Dispatch
from qfuse.compiler.passes.expand_quantize import ExpandQuantize
from qfuse.compiler.passes.fuse_act_quantize import FuseActQuantize
from qfuse.compiler.passes.fuse_combine import FuseCombine
from qfuse.compiler.passes.fuse_epilogue import FuseEpilogue
from qfuse.compiler.passes.fuse_gate_up import FuseGateUp
from qfuse.compiler.passes.fuse_norm_quantize import FuseNormQuantize
from qfuse.compiler.passes.fuse_qkv import FuseQkv
from qfuse.compiler.passes.fuse_rope import FuseRope
from qfuse.compiler.passes.fuse_shared_expert import FuseSharedExpert
from qfuse.compiler.passes.raise_attention import RaiseAttention
from qfuse.compiler.passes.raise_torch import RaiseTorch
from qfuse.compiler.passes.triton_to_binary import TritonToBinary

ALL_PASSES: dict[str, type[Pass]] = {
    cls.name: cls
    for cls in (
        RaiseTorch,
        ExpandQuantize,
        FuseSharedExpert,
        FuseGateUp,
        FuseQkv,
        FuseRope,
        FuseEpilogue,
        FuseCombine,
        FuseNormQuantize,
        FuseActQuantize,
        RaiseAttention,
        ChooseScaleLayout,
        Dispatch,
        ConvertToBlas,
        ConvertToCpu,
        ConvertToTriton,
        TritonToBinary,
    )
}
