"""The router of DeepSeek-V3 compiled ahead of time; no GPU is needed."""

import pytest
from expert_selection import ROUTERS
from gpu_kernels import lowered
from test_select_experts_numerics import router_text

pytest.importorskip("triton")

from test_compile_matrix import hold_gates
from test_sass import compiled

from qfuse.lowering.triton.gpu import GPUS

ROUTER = router_text(next(r for r in ROUTERS if r.groups == 8))


@pytest.mark.parametrize("target", ["cuda:sm_90", "hip:gfx942"])
def test_one_warp_that_waits_for_nothing(target: str) -> None:
    """No spills, and neither shared memory nor barriers."""
    (launch,) = lowered(ROUTER, target).variants[0].launches
    hold_gates(launch, GPUS[target], "")
    binary = compiled(launch, target)
    assert int(binary.metadata["shared"]) == 0
    text = binary.text("ptx" if GPUS[target].is_cuda else "amdgcn")
    assert "bar.sync" not in text and "s_barrier" not in text
