"""Experts of mixture-of-experts layers as torch operators: schemas' eager code and shape rules.

    qfuse::moe_experts    experts with block-scaled FP8 weights; the compiler expands it
    qfuse::dense_experts  experts with plain weights; stays one operator of torch

T tokens choose k experts each, out of E: `ids` int [T, k], where an id outside 0..E-1 is no expert
and adds zero, and `weights` float [T, k].  A token's result is the sum over its choices of
weight * down(act(gate) * up), added in f32 in the order of the choices.  Each product and each
step of the activation is rounded to x's type, as separate operators would.

These loop over the experts that were chosen, which the host has to know: on a GPU a call waits.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import gelu, linear, silu

from qfuse.compiler.block_scaled import quantized_linear
from qfuse.dialects.errors import QfuseError

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
}


def padded_rows(rows: int, height: int) -> int:
    """`rows` rounded up to whole scale blocks of `height` rows."""
    return -(-rows // height) * height


def moe_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    gate_up_scale: torch.Tensor,
    down: torch.Tensor,
    down_scale: torch.Tensor,
    intermediate: int,
    weight_block: list[int],
    input_block: list[int],
    act: str,
) -> torch.Tensor:
    """The experts' sum [T, H] for x [T, H], in x's type; see the top of this file.

    With I = `intermediate` and `weight_block` [bn, bk]: `gate_up` FP8 [E, padded_rows(I, bn) + I,
    H] has the gate's rows, then the up projection's from the next block boundary on;
    `gate_up_scale` f32 [E, 2 ceil(I/bn), ceil(H/bk)].  `down` FP8 [E, H, I], `down_scale` f32
    [E, ceil(H/bn), ceil(I/bk)].  `input_block` [1, g] quantizes the inputs of both products, per
    row and group of g; [] leaves them as they are.  Raises QfuseError on shapes that do not fit.
    """
    tensors = (x, ids, weights, gate_up, gate_up_scale, down, down_scale)
    _check_experts(*tensors, intermediate, weight_block, input_block, act)
    blocks = -(-intermediate // weight_block[0])

    def product(
        rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, at: int, count: int
    ) -> torch.Tensor:
        first = at // weight_block[0]
        scales = scale[first : first - (-count // weight_block[0])]
        codes = weight[at : at + count]
        return quantized_linear(rows, codes, scales, None, weight_block, input_block)

    def expert(e: int, rows: torch.Tensor) -> torch.Tensor:
        gate = product(rows, gate_up[e], gate_up_scale[e], 0, intermediate)
        up = product(rows, gate_up[e], gate_up_scale[e], blocks * weight_block[0], intermediate)
        hidden = ACTIVATIONS[act](gate) * up
        return product(hidden, down[e], down_scale[e], 0, down.shape[1])

    return _weighted_sum(x, ids, weights, gate_up.shape[0], expert)


def dense_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    act: str,
) -> torch.Tensor:
    """`moe_experts` with weights in x's type: `gate_up` [E, 2 I, H], `down` [E, H, I]."""
    _check_dense_experts(x, ids, weights, gate_up, down, act)

    def expert(e: int, rows: torch.Tensor) -> torch.Tensor:
        gate, up = linear(rows, gate_up[e]).chunk(2, -1)
        return linear(ACTIVATIONS[act](gate) * up, down[e])

    return _weighted_sum(x, ids, weights, gate_up.shape[0], expert)


def _weighted_sum(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: int,
    expert: Callable[[int, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Sum of `expert(e, rows)` over each token's choices, weighted, in f32 and in order."""
    known = (ids >= 0) & (ids < experts)
    outputs = x.new_zeros(*ids.shape, x.shape[1])
    for e in ids[known].unique().tolist():
        token, choice = torch.where(ids == e)
        outputs[token, choice] = expert(e, x[token])
    # not weight * 0: a weight that is nobody's may be infinite
    factors = torch.where(known, weights.float(), 0.0)
    total = x.new_zeros(x.shape, dtype=torch.float32)
    for j in range(ids.shape[1]):
        total += factors[:, j, None] * outputs[:, j].float()
    return total.to(x.dtype)


def _check_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    gate_up_scale: torch.Tensor,
    down: torch.Tensor,
    down_scale: torch.Tensor,
    intermediate: int,
    weight_block: list[int],
    _: list[int],
    act: str,
) -> None:
    """Raise QfuseError, naming the argument, unless the shapes are those of `moe_experts`."""
    hidden, (bn, bk) = x.shape[-1], weight_block
    experts, blocks = gate_up.shape[0], -(-intermediate // bn)
    _check_choices(x, ids, weights, act)
    _check_shape(
        "gate_up", gate_up, (experts, padded_rows(intermediate, bn) + intermediate, hidden)
    )
    _check_shape("gate_up_scale", gate_up_scale, (experts, 2 * blocks, -(-hidden // bk)))
    _check_shape("down", down, (experts, hidden, intermediate))
    _check_shape("down_scale", down_scale, (experts, -(-hidden // bn), -(-intermediate // bk)))


def _check_dense_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    act: str,
) -> None:
    """Raise QfuseError, naming the argument, unless the shapes are those of `dense_experts`."""
    experts, intermediate = gate_up.shape[0], down.shape[-1]
    _check_choices(x, ids, weights, act)
    _check_shape("gate_up", gate_up, (experts, 2 * intermediate, x.shape[-1]))
    _check_shape("down", down, (experts, x.shape[-1], intermediate))


def _check_choices(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, act: str) -> None:
    if x.dim() != 2 or ids.dim() != 2 or ids.is_floating_point():
        raise QfuseError(
            f"experts take x [T, H] and whole ids [T, k]; got {list(x.shape)} and {ids.dtype} "
            f"{list(ids.shape)}"
        )
    _check_shape("ids", ids, (x.shape[0], ids.shape[1]))
    _check_shape("weights", weights, tuple(ids.shape))
    if act not in ACTIVATIONS:
        raise QfuseError(f'act "{act}" is not one of {", ".join(ACTIVATIONS)}')


def _check_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise QfuseError(
            f"{name} of the experts has shape {list(tensor.shape)}; expected {list(expected)}"
        )


def _fake_experts(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    _check_experts(x, *rest)
    return x.new_empty(x.shape)


def _fake_dense_experts(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    _check_dense_experts(x, *rest)
    return x.new_empty(x.shape)


OPERATORS = (
    (
        "moe_experts(Tensor x, Tensor ids, Tensor weights, Tensor gate_up, Tensor gate_up_scale, "
        "Tensor down, Tensor down_scale, int intermediate, int[] weight_block, int[] input_block, "
        "str act) -> Tensor",
        moe_experts,
        _fake_experts,
    ),
    (
        "dense_experts(Tensor x, Tensor ids, Tensor weights, Tensor gate_up, Tensor down, str act) "
        "-> Tensor",
        dense_experts,
        _fake_dense_experts,
    ),
)
"""Schema, eager implementation and shape rule of each operator."""
