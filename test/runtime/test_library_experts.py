"""Grouped products of experts by a library, every M from 1 to 40, against our kernels.

Programs run on a GPU that is not there (gpu_fakes.py); the library's calls are their definition,
with the checks of GroupedBlas.cpp.
"""

from typing import Any

import pytest
import torch
from gpu_fakes import FakeGpu
from test_library import compiled, on_a_gpu, scheme

from qfuse.compiler.block_scaled import dequantize_blocks, quantize_blocks
from qfuse.compiler.runtime.plan import ChoiceStep
from qfuse.compiler.runtime.session import Session

assert on_a_gpu  # a fixture, for this file, too

N, K, EXPERTS, CHOICES = 48, 64, 5, 2
TOKENS = 40


def grouped(a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """f32 [M, N]: rows up to each of `offs` by the weight of its expert; NaN behind the last."""
    assert a.dim() == 2 and a.is_contiguous() and b.transpose(-2, -1).is_contiguous()
    assert offs.dtype == torch.int32 and offs.shape == (b.shape[0],)
    y = torch.full((a.shape[0], b.shape[-1]), torch.nan)
    start = 0
    for expert, end in enumerate(offs.tolist()):
        y[start:end] = a[start:end] @ b[expert]
        start = end
    return y


def grouped_mm(a: torch.Tensor, b: torch.Tensor, *, offs: torch.Tensor) -> torch.Tensor:
    assert a.dtype == b.dtype == torch.bfloat16
    assert a.shape[1] % 8 == 0 and b.shape[-1] % 8 == 0, "rows of 16 bytes"
    return grouped(a.float(), b.float(), offs).bfloat16()


def scaled_grouped_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    scale_a: torch.Tensor,
    scale_recipe_a: Any,
    scale_b: torch.Tensor,
    scale_recipe_b: Any,
    offs: torch.Tensor,
    output_dtype: torch.dtype,
) -> torch.Tensor:
    recipe = torch.nn.functional.ScalingType  # type: ignore[attr-defined]
    assert scale_recipe_a == scale_recipe_b == recipe.RowWise
    assert a.dtype == b.dtype == torch.float8_e4m3fn and output_dtype == torch.bfloat16
    assert scale_a.shape == (a.shape[0],) and scale_b.shape == (b.shape[0], b.shape[-1])
    assert scale_a.is_contiguous() and scale_b.is_contiguous()
    assert a.shape[1] % 16 == 0 and b.shape[-1] % 16 == 0
    wide = b.float() * scale_b[:, None]
    return grouped(a.float() * scale_a[:, None], wide, offs).to(output_dtype)


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", grouped_mm)
    monkeypatch.setattr(torch.nn.functional, "scaled_grouped_mm", scaled_grouped_mm)


def product(x: str, w: str) -> str:
    return f"""
      %y = "qfuse.group_matmul"(%x_q, %w, %indptr) ({{
      ^bb0(%acc: f32):
        "qfuse.yield"(%acc) : (f32) -> ()
      }}) {{parts = array<i64: {N}>, maps = [],
          operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>,
          resultSegmentSizes = array<i32: 1, 0, 0, 0>}}
        : ({x}, {w}, tensor<{EXPERTS + 1}xi32>) -> tensor<?x{CHOICES}x{N}xbf16>"""


def main(body: str, parameters: dict[str, str]) -> str:
    given = [
        ("x", f"tensor<?x{CHOICES}x{K}xbf16>", "input"),
        ("indptr", f"tensor<{EXPERTS + 1}xi32>", "input"),
        *((name, type_, "parameter") for name, type_ in parameters.items()),
    ]
    listed = ", ".join(f'%{n}: {t} {{qfuse.kind = "{k}", qfuse.name = "{n}"}}' for n, t, k in given)
    y = f"tensor<?x{CHOICES}x{N}xbf16>"
    result = f'{y} {{qfuse.kind = "output", qfuse.name = "y"}}'
    return f"func.func @main({listed}) -> ({result}) {{{body}\n  return %y : {y}\n}}"


def case(call: str) -> tuple[str, dict[str, torch.Tensor], torch.Tensor]:
    """(program, parameters, the weights [E, N, K] in f32)."""
    dense = torch.randn(EXPERTS, N, K, generator=torch.Generator().manual_seed(0))
    x = f"tensor<?x{CHOICES}x{K}xbf16>"
    if call == "grouped_mm":
        w = f"tensor<{EXPERTS}x{N}x{K}xbf16>"
        body = product(x, w).replace("%x_q", "%x")
        weight = dense.bfloat16()
        return main(body, {"w": w}), {"w": weight}, weight.float()
    rows = EXPERTS * N
    codes, scale = quantize_blocks(dense.view(rows, K), (1, K))
    q = f"!qfuse.qtensor<tensor<?x{CHOICES}x{K}xf8E4M3FN>, {scheme(f'1, {K}')}>"
    w = f"!qfuse.qtensor<tensor<{EXPERTS}x{N}x{K}xf8E4M3FN>, {scheme(f'1, {K}')}>"
    types = {
        "codes": f"tensor<{EXPERTS}x{N}x{K}xf8E4M3FN>",
        "scale": f"tensor<{EXPERTS}x{N}x1xf32>",
    }
    body = f"""
      %w = "qfuse.pack"(%codes, %scale) : ({types["codes"]}, {types["scale"]}) -> {w}
      %x_q = "qfuse.quantize"(%x) : ({x}) -> {q}""" + product(q, w)
    parameters = {"codes": codes.view(EXPERTS, N, K), "scale": scale.view(EXPERTS, N, 1)}
    weight = dequantize_blocks(codes, scale, (1, K)).view(EXPERTS, N, K)
    return main(body, types), parameters, weight


def sorted_rows(tokens: int) -> torch.Tensor:
    """indptr of the rows of so many tokens: every expert's share is another, some have none."""
    generator = torch.Generator().manual_seed(tokens)
    chosen = torch.randint(0, EXPERTS, (tokens * CHOICES,), generator=generator)
    counts = torch.bincount(chosen, minlength=EXPERTS)
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(torch.int32)


@pytest.mark.parametrize("call", ["grouped_mm", "scaled_grouped_mm"])
def test_rows_of_experts_agree_whatever_multiplies_them(call: str) -> None:
    """One token by our kernel, more by the library: decode and prefill of one layer."""
    text, parameters, weight = case(call)
    program = compiled(text, parameters)
    (choice,) = (s for s in program.plan.steps if isinstance(s, ChoiceStep))
    assert choice.call == call
    session = Session(program, device=FakeGpu(), poison=True)
    kernels = Session(compiled(text, parameters, "off"), device=FakeGpu(), poison=True)
    x = torch.randn(TOKENS, CHOICES, K, generator=torch.Generator().manual_seed(1)).bfloat16()
    used = set()
    for m in range(1, TOKENS + 1):
        indptr = sorted_rows(m)
        rows = x[:m].reshape(-1, K).float()
        if call == "scaled_grouped_mm":
            rows = dequantize_blocks(*quantize_blocks(rows, (1, K)), (1, K))
        expected = grouped(rows, weight.transpose(-2, -1), indptr[1:]).view(m, CHOICES, N)
        (y,) = session(x[:m].clone(), indptr)
        (ours,) = kernels(x[:m].clone(), indptr)
        scale = expected.abs().max()
        # a rounding to bf16, and a code of x on a border that goes the other way
        assert (y.float() - expected).abs().max() <= 2**-6 * scale, m
        # one activation's codes: both differ by the order of sums, and the rounding of those
        assert torch.allclose(y.float(), ours.float(), rtol=2**-7, atol=2**-7 * float(scale)), m
        source = session.source(x[:m].clone(), indptr)
        assert (f"library_{call}" in source) == (m > 1) == choice.serves(m * CHOICES)
        assert "copy" not in session.profile(x[:m].clone(), indptr).by_kind
        used.add("library" if "library" in source else "kernel")
    assert used == {"library", "kernel"}
    # no token more than those of a call: the same rows, decoded one by one
    one = torch.tensor([0, 0, CHOICES, *[CHOICES] * (EXPERTS - 2)], dtype=torch.int32)
    both = torch.tensor([0, 0, *[2 * CHOICES] * (EXPERTS - 1)], dtype=torch.int32)
    (prefill,) = session(x[:2].clone(), both)
    decoded = torch.cat([session(x[i : i + 1].clone(), one)[0] for i in range(2)])
    limit = 2**-7 * float(prefill.abs().max())
    assert torch.allclose(prefill.float(), decoded.float(), rtol=2**-7, atol=limit)
