"""Experts as torch operators: schemas' eager code and shape rules; torch_router.py has routers.

    qfuse::moe_experts     experts with quantized weights of any scheme; the compiler expands it
    qfuse::dense_experts   experts with plain weights; the compiler expands it, too

T tokens choose k experts each, out of E: `ids` int [T, k], where an id outside 0..E-1 is no expert
and adds zero, and `weights` float [T, k].  A token's result is the sum over its choices of
weight * down(glu(gate, up)), added in f32 in the order of the choices.  Each product, each bias
and each step of the GLU is rounded to x's type, as separate operators would.

What the GLU is, `act`, `limit` (None: no limit) and `alpha` (None: 1.702) say, as for
`qfuse.dialects.glu.Glu`.  Biases are of each expert, in x's type: `gate_up_bias` [E, 2 I], the
gate's first, and `down_bias` [E, H].

The two that run experts loop over those that were chosen, which the host has to know: on a GPU a
call waits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

from qfuse.compiler.packed_weights import BITS, NUMBERS
from qfuse.compiler.quantized_linear import SCALE_DTYPES, STATIC, quantized_linear
from qfuse.compiler.torch_glu import apply_glu, make_glu
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.glu import Glu


def padded_rows(rows: int, height: int) -> int:
    """`rows` rounded up to whole scale blocks of `height` rows."""
    return -(-rows // height) * height


@dataclass(frozen=True)
class Stored:
    """How the weight of one of the two products is stored, and its input quantized."""

    block: tuple[int, ...]
    input_block: tuple[int, ...]
    packing: str

    def shapes(self, rows: int, columns: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the codes of one expert, and of its scales; zero points are as many as scales.

        `rows` are those of each part, which begins where a block does.
        """
        (bn, bk), numbers = self.block, NUMBERS.get(self.packing, 1)
        codes = (rows, columns * BITS[self.packing] // 8)
        return codes, (-(-rows // bn), -(-columns // bk) * numbers)


def stored_as(
    weight_block: Sequence[int],
    input_block: Sequence[int],
    packing: str,
    down_block: Sequence[int],
    down_input: Sequence[int],
    down_packing: str,
) -> tuple[Stored, Stored]:
    """That of gate and up, and of down: what is empty for down is as for gate and up."""
    return (
        Stored(tuple(weight_block), tuple(input_block), packing),
        Stored(
            tuple(down_block or weight_block),
            tuple(down_input or input_block),
            down_packing or packing,
        ),
    )


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
    limit: float | None = None,
    alpha: float | None = None,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    packing: str = "none",
    input_format: str = "dynamic",
    gate_up_zero_point: torch.Tensor | None = None,
    down_zero_point: torch.Tensor | None = None,
    down_block: Sequence[int] = (),
    down_input: Sequence[int] = (),
    down_packing: str = "",
    gate_up_input_scale: torch.Tensor | None = None,
    down_input_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """The experts' sum [T, H] for x [T, H], in x's type; see the top of this file.

    With I = `intermediate` and `weight_block` [bn, bk]: `gate_up` [E, padded_rows(I, bn) + I, H]
    has the gate's rows, then the up projection's from the next block boundary on;
    `gate_up_scale` is [E, 2 ceil(I/bn), ceil(H/bk)].  `down` is [E, H, I], `down_scale`
    [E, ceil(H/bn), ceil(I/bk)].  Elements, scales and zero points of each expert are stored as
    `qfuse::quantized_linear` takes those of a layer; see there for `packing` and `input_format`,
    of which "tensor" is none here.  `input_block` [1, g] quantizes the inputs, per row and group of
    g; [] leaves them as they are.  "static" takes one scale for the inputs of gate and up and one
    for those of down, f32 [1], whichever the expert.  `down_block`, `down_input` and `down_packing`
    are those of the down projection where they differ.  Raises QfuseError on what does not fit.
    """
    tensors = (x, ids, weights, gate_up, gate_up_scale, down, down_scale)
    constants = (intermediate, weight_block, input_block, act, limit, alpha)
    zeros = (gate_up_zero_point, down_zero_point)
    scales = (gate_up_input_scale, down_input_scale)
    of_down = (down_block, down_input, down_packing)
    formats: tuple[Any, ...] = (packing, input_format, *zeros, *of_down, *scales)
    glu = _check_experts(*tensors, *constants, gate_up_bias, down_bias, *formats)
    wide, narrow = stored_as(
        weight_block, input_block, packing, down_block, down_input, down_packing
    )

    def product(
        rows: torch.Tensor,
        stored: Stored,
        of_expert: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
        at: int,
        count: int,
        input_scale: torch.Tensor | None,
    ) -> torch.Tensor:
        height = stored.block[0]
        blocks = slice(at // height, at // height - (-count // height))
        weight, scale, zero = of_expert
        return quantized_linear(
            rows,
            weight[at : at + count],
            scale[blocks],
            None,
            list(stored.block),
            list(stored.input_block),
            stored.packing,
            input_format,
            None if zero is None else zero[blocks],
            input_scale,
        )

    def expert(e: int, rows: torch.Tensor) -> torch.Tensor:
        zero, down_zero = (None if z is None else z[e] for z in zeros)
        both = (gate_up[e], gate_up_scale[e], zero)
        at = padded_rows(intermediate, wide.block[0])
        gate = product(rows, wide, both, 0, intermediate, scales[0])
        up = product(rows, wide, both, at, intermediate, scales[0])
        if gate_up_bias is not None:
            gate, up = gate + gate_up_bias[e, :intermediate], up + gate_up_bias[e, intermediate:]
        last = (down[e], down_scale[e], down_zero)
        y = product(apply_glu(glu, gate, up), narrow, last, 0, down.shape[1], scales[1])
        return y if down_bias is None else y + down_bias[e]

    return _weighted_sum(x, ids, weights, gate_up.shape[0], expert)


def dense_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    act: str,
    limit: float | None = None,
    alpha: float | None = None,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`moe_experts` with weights in x's type: `gate_up` [E, 2 I, H], `down` [E, H, I]."""
    tensors = (x, ids, weights, gate_up, down)
    glu = _check_dense_experts(*tensors, act, limit, alpha, gate_up_bias, down_bias)

    def expert(e: int, rows: torch.Tensor) -> torch.Tensor:
        both = linear(rows, gate_up[e])
        if gate_up_bias is not None:
            both = both + gate_up_bias[e]
        y = linear(apply_glu(glu, *both.chunk(2, -1)), down[e])
        return y if down_bias is None else y + down_bias[e]

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
    input_block: list[int],
    act: str,
    limit: float | None = None,
    alpha: float | None = None,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    packing: str = "none",
    input_format: str = "dynamic",
    gate_up_zero_point: torch.Tensor | None = None,
    down_zero_point: torch.Tensor | None = None,
    down_block: Sequence[int] = (),
    down_input: Sequence[int] = (),
    down_packing: str = "",
    gate_up_input_scale: torch.Tensor | None = None,
    down_input_scale: torch.Tensor | None = None,
) -> Glu:
    """Raise QfuseError, naming the argument, unless they are as `moe_experts` wants them."""
    stored = stored_as(weight_block, input_block, packing, down_block, down_input, down_packing)
    for name, legal in ((s.packing, BITS) for s in stored):
        if name not in legal:
            raise QfuseError(f'packing "{name}" of the experts is not one of {", ".join(legal)}')
    if input_format not in (*SCALE_DTYPES, STATIC):
        names = ", ".join((*SCALE_DTYPES, STATIC))
        raise QfuseError(f'input_format "{input_format}" of the experts is not one of {names}')
    given = {"gate_up": gate_up_input_scale, "down": down_input_scale}
    for name, input_scale in given.items() if input_format == STATIC else ():
        if input_scale is None:
            raise QfuseError(f'input_format "{STATIC}" of the experts needs {name}_input_scale')
        _check_shape(f"{name}_input_scale", input_scale, (1,))
    experts, hidden = gate_up.shape[0], x.shape[-1]
    _check_choices(x, ids, weights)
    padded = padded_rows(intermediate, stored[0].block[0])
    _, (blocks, columns) = stored[0].shapes(intermediate, hidden)
    (rows, bytes_), _ = stored[0].shapes(padded + intermediate, hidden)
    codes, scales = stored[1].shapes(hidden, intermediate)
    wanted = (
        ("gate_up", gate_up, (rows, bytes_), gate_up_zero_point, (2 * blocks, columns)),
        ("down", down, codes, down_zero_point, scales),
    )
    found = {"gate_up": gate_up_scale, "down": down_scale}
    for name, weight, of_codes, zero, of_scales in wanted:
        _check_shape(name, weight, (experts, *of_codes))
        _check_shape(f"{name}_scale", found[name], (experts, *of_scales))
        if zero is not None:
            _check_shape(f"{name}_zero_point", zero, (experts, *of_scales))
    _check_biases(x, gate_up_bias, down_bias, experts, intermediate)
    return make_glu(act, limit, alpha)


def _check_dense_experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    act: str,
    limit: float | None = None,
    alpha: float | None = None,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
) -> Glu:
    """Raise QfuseError, naming the argument, unless they are as `dense_experts` wants them."""
    experts, intermediate = gate_up.shape[0], down.shape[-1]
    _check_choices(x, ids, weights)
    _check_shape("gate_up", gate_up, (experts, 2 * intermediate, x.shape[-1]))
    _check_shape("down", down, (experts, x.shape[-1], intermediate))
    _check_biases(x, gate_up_bias, down_bias, experts, intermediate)
    return make_glu(act, limit, alpha)


def _check_biases(
    x: torch.Tensor,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    experts: int,
    intermediate: int,
) -> None:
    widths = {"gate_up_bias": 2 * intermediate, "down_bias": x.shape[-1]}
    for (name, width), bias in zip(widths.items(), (gate_up_bias, down_bias), strict=True):
        if bias is None:
            continue
        _check_shape(name, bias, (experts, width))
        if bias.dtype != x.dtype:
            raise QfuseError(f"{name} of the experts is {bias.dtype}; expected {x.dtype}, as x is")


def _check_choices(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
    if x.dim() != 2 or ids.dim() != 2 or ids.is_floating_point():
        raise QfuseError(
            f"experts take x [T, H] and whole ids [T, k]; got {list(x.shape)} and {ids.dtype} "
            f"{list(ids.shape)}"
        )
    _check_shape("ids", ids, (x.shape[0], ids.shape[1]))
    _check_shape("weights", weights, tuple(ids.shape))


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
        "str act, float? limit=None, float? alpha=None, Tensor? gate_up_bias=None, "
        "Tensor? down_bias=None, str packing='none', str input_format='dynamic', "
        "Tensor? gate_up_zero_point=None, Tensor? down_zero_point=None, int[] down_block=[], "
        "int[] down_input=[], str down_packing='', Tensor? gate_up_input_scale=None, "
        "Tensor? down_input_scale=None) -> Tensor",
        moe_experts,
        _fake_experts,
    ),
    (
        "dense_experts(Tensor x, Tensor ids, Tensor weights, Tensor gate_up, Tensor down, str act, "
        "float? limit=None, float? alpha=None, Tensor? gate_up_bias=None, Tensor? down_bias=None) "
        "-> Tensor",
        dense_experts,
        _fake_dense_experts,
    ),
)
"""Schema, eager implementation and shape rule of each operator."""
