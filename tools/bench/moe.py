"""The experts of a mixture-of-experts layer: shapes, routings, tensors, and a reference."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.tools.bench.cases import BLOCK, dequantize, quantize

TOKENS = (1, 16, 128, 1024, 8192)
ROUTINGS = ("balanced", "skewed")

_SAMPLE = 64
"""Tokens whose results are compared with the reference."""

_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True)
class Experts:
    """A token's `choices` experts out of `count`, each down(silu(gate(x)) * up(x)), weighted.

    Weights are e4m3 with one f32 scale for each 128 x 128; inputs of products are quantized for
    each 128 of a row.  x and the result are bf16 [T, hidden].
    """

    name: str
    count: int
    choices: int
    hidden: int
    intermediate: int
    whole: int
    """Experts that the model has; `count` of them are here."""

    def __str__(self) -> str:
        return self.name

    def cut(self, count: int) -> "Experts":
        """With `count` experts; raises QfuseError where that is too few or too many."""
        if not self.choices <= count <= self.whole:
            raise QfuseError(
                f"{count} experts are not what {self} can be cut to; it has {self.whole}, and "
                f"each token chooses {self.choices}"
            )
        return replace(self, count=count)

    @property
    def wide_rows(self) -> int:
        """Rows of gate and up; up begins at a multiple of 128."""
        return _ceil_div(self.intermediate, BLOCK) * BLOCK + self.intermediate

    @property
    def elements(self) -> int:
        """Weights of one expert."""
        return 3 * self.hidden * self.intermediate

    @property
    def bytes(self) -> int:
        """Of one expert, without what lies between gate and up."""
        blocks = _ceil_div(self.hidden, BLOCK) * _ceil_div(self.intermediate, BLOCK)
        return self.elements + 3 * 4 * blocks

    def flops(self, rows: int) -> float:
        return 2.0 * rows * self.elements

    @property
    def gate_up(self) -> Shaped:
        return _weight(self.count, self.wide_rows, self.hidden)

    @property
    def down(self) -> Shaped:
        return _weight(self.count, self.hidden, self.intermediate)

    @property
    def text(self) -> str:
        """What a front end's layer is before anything is fused, as a module with `@main`."""
        t, k, width = DYNAMIC, self.choices, self.intermediate
        x, indptr = Shaped((t, self.hidden), "bf16"), Shaped((self.count + 1,), "i32")
        ids, weights, place = (Shaped((t, k), dtype) for dtype in ("i64", "f32", "i32"))
        part, row = Shaped((t, k, width), "bf16"), Shaped((t, k, self.hidden), "bf16")
        xq, hq = (replace(v, dtype="f8E4M3FN", scheme=Scheme((1, BLOCK), "f32")) for v in (x, part))
        wide, narrow = self.gate_up, self.down
        return f"""
func.func @main(%x: {x}, %ids: {ids}, %weights: {weights}, %wide: {wide}, %narrow: {narrow}) -> {x}
{{
  %xq = "qfuse.quantize"(%x) : ({x}) -> {xq}
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {{num_experts = {self.count} : i64}}
    : ({ids}) -> ({place}, {place}, {indptr})
  %gate, %up = "qfuse.group_matmul"(%xq, %wide, %indptr, %tokens) ({{
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a, %b) : (f32, f32) -> ()
  }}) {{parts = array<i64: {width}, {width}>, maps = [],
    operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>,
    resultSegmentSizes = array<i32: 1, 1, 0, 0>}}
    : ({xq}, {wide}, {indptr}, {place}) -> ({part}, {part})
  %h = "qfuse.glu"(%gate, %up) {{act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>,
    resultSegmentSizes = array<i32: 1, 0>}}
    : ({part}, {part}) -> {part}
  %hq = "qfuse.quantize"(%h) : ({part}) -> {hq}
  %y = "qfuse.group_matmul"(%hq, %narrow, %indptr) ({{
  ^bb0(%a: f32):
    "qfuse.yield"(%a) : (f32) -> ()
  }}) {{parts = array<i64: {self.hidden}>, maps = [],
    operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>,
    resultSegmentSizes = array<i32: 1, 0, 0, 0>}} : ({hq}, {narrow}, {indptr}) -> {row}
  %out = "qfuse.combine"(%y, %slots, %weights)
    {{operandSegmentSizes = array<i32: 1, 1, 1, 0>}} : ({row}, {place}, {weights}) -> {x}
  return %out : {x}
}}
"""


def _weight(*shape: int) -> Shaped:
    return Shaped(shape, "f8E4M3FN", Scheme((BLOCK, BLOCK), "f32"))


MODELS = (
    Experts("DeepSeek-V3", 256, 8, 7168, 2048, 256),
    Experts("Qwen3-30B-A3B", 128, 8, 2048, 768, 128),
    Experts("Mixtral-8x7B", 8, 2, 4096, 14336, 8),
)
"""From the models' config.json: experts, experts per token, hidden and intermediate size."""


def parse_experts(text: str | None) -> list[Experts]:
    """Names of models, or `ExkxHxI`, with commas between; all models by default."""
    return [_parse(part.strip()) for part in text.split(",")] if text else list(MODELS)


def is_experts(text: str) -> bool:
    """Whether a shape is one of experts, and not of a product."""
    return _named(text.strip()) is not None or _SHAPE.fullmatch(text.strip()) is not None


def _named(text: str) -> Experts | None:
    return next((m for m in MODELS if m.name.lower() == text.lower()), None)


def _parse(text: str) -> Experts:
    if (named := _named(text)) is not None:
        return named
    match = _SHAPE.fullmatch(text)
    if match is None or not all(map(int, match.groups())):
        raise QfuseError(
            f"experts '{text}' are unknown; use {', '.join(m.name for m in MODELS)}, or experts x "
            "choices x hidden x intermediate as in 128x8x2048x768"
        )
    count, choices, hidden, intermediate = map(int, match.groups())
    return Experts(text, count, choices, hidden, intermediate, count).cut(count)


@dataclass(frozen=True)
class Weights:
    """Codes e4m3 and f32 scales: gate_up [E, wide_rows, H], down [E, H, I]."""

    gate_up: torch.Tensor
    gate_up_scale: torch.Tensor
    down: torch.Tensor
    down_scale: torch.Tensor

    @property
    def tensors(self) -> list[list[torch.Tensor]]:
        """In the order of `@main`."""
        return [[self.gate_up, self.gate_up_scale], [self.down, self.down_scale]]

    @property
    def device(self) -> torch.device:
        return self.down.device

    def of_expert(self, e: int) -> tuple[torch.Tensor, torch.Tensor]:
        """f32 gate and up [2 I, H], and down [H, I]."""
        wide = dequantize(self.gate_up[e], self.gate_up_scale[e], BLOCK)
        width = self.down.shape[2]
        both = torch.cat((wide[:width], wide[wide.shape[0] - width :]))
        return both, dequantize(self.down[e], self.down_scale[e], BLOCK)

    @cached_property
    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        """bf16 gate_up [E, 2 I, H] and down [E, H, I]: what an unquantized model holds."""
        experts, hidden, width = self.down.shape
        wide = self.down.new_empty((experts, 2 * width, hidden), dtype=torch.bfloat16)
        narrow = torch.empty_like(self.down, dtype=torch.bfloat16)
        for e in range(experts):
            wide[e], narrow[e] = self.of_expert(e)
        return wide, narrow


@dataclass(frozen=True)
class Tokens:
    """x bf16 [T, H], ids int64 [T, k], weights f32 [T, k]."""

    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor

    @property
    def tensors(self) -> list[list[torch.Tensor]]:
        """In the order of `@main`."""
        return [[self.x], [self.ids], [self.weights]]

    @property
    def touched(self) -> int:
        """Experts that have rows."""
        return int(self.ids.unique().numel())

    def bytes(self, experts: Experts) -> int:
        """What goes through memory at least: weights of those experts, x, and the result."""
        routing = sum(t.numel() * t.element_size() for t in (self.ids, self.weights))
        return self.touched * experts.bytes + 2 * self.x.numel() * 2 + routing


def make_weights(experts: Experts, device: torch.device, seed: int = 0) -> Weights:
    """Random codes below 2 and scales with which products are of about the size of their input."""
    generator = torch.Generator(device).manual_seed(seed)

    def codes(value: Shaped) -> torch.Tensor:
        made = torch.empty(value.shape, dtype=torch.uint8, device=device)
        flat = made.view(-1)
        for part in flat.split(1 << 28):  # eight bytes by one number where that is possible
            words = part[: part.numel() // 8 * 8].view(torch.int64)
            words.random_(-(2**63), None, generator=generator)
            part[words.numel() * 8 :].random_(0, 256, generator=generator)
        # Without the exponent's highest bit a code is below 2, and none is a NaN.
        return made.bitwise_and_(0xBF).view(torch.float8_e4m3fn)

    def scales(value: Shaped) -> torch.Tensor:
        made = torch.rand(value.scale_shape, generator=generator, device=device)
        return (made + 0.5) / (_DEVIATION * value.shape[2] ** 0.5)

    wide, narrow = experts.gate_up, experts.down
    return Weights(codes(wide), scales(wide), codes(narrow), scales(narrow))


_DEVIATION = 0.62
"""Of random codes below 2: the root of sum over p of 4^(p - 7) / 8 * 7/3, p = 1..7."""


def make_tokens(
    experts: Experts, tokens: int, routing: str, device: torch.device, number: int = 0
) -> Tokens:
    """The tokens of one call; those of another `number` meet other experts where there are any.

    balanced: choices go round all experts.  skewed: the expert of popularity rank r is drawn with
    weight 1 / r (Zipf), a token's choices without repetition.
    """
    generator = torch.Generator().manual_seed(number)
    k, e = experts.choices, experts.count
    x = torch.randn(tokens, experts.hidden, generator=generator).bfloat16()
    if routing == "balanced":
        order = torch.randperm(e, generator=torch.Generator().manual_seed(e))
        ids = order[(torch.arange(tokens * k) + number * tokens * k) % e].view(tokens, k)
    else:
        order = torch.randperm(e, generator=generator)
        noise = -torch.empty(tokens, e).exponential_(generator=generator).log()  # Gumbel
        ids = order[(noise - torch.arange(1, e + 1).log()).topk(k).indices]
    weights = torch.rand(tokens, k, generator=generator) + 0.1
    weights /= weights.sum(-1, keepdim=True)
    return Tokens(x.to(device), ids.to(device), weights.to(device))


def sampled(tokens: int) -> torch.Tensor:
    """The tokens that are looked at: all of few, or some from the first to the last."""
    return torch.linspace(0, tokens - 1, min(tokens, _SAMPLE)).round().long()


def reference(weights: Weights, tokens: Tokens, which: torch.Tensor) -> torch.Tensor:
    """f32 results of the tokens `which`; rounded and quantized where the layer does it.

    On a GPU products are in f32, not TF32.
    """
    which = which.to(weights.device)
    x = dequantize(*quantize(tokens.x[which]), 1)
    ids, factors = tokens.ids[which], tokens.weights[which]
    out = torch.zeros_like(x)
    for e in ids.unique().tolist():
        wide, narrow = weights.of_expert(e)
        token, choice = torch.where(ids == e)
        gate, up = (x[token] @ wide.T).bfloat16().chunk(2, -1)
        hidden = dequantize(*quantize(torch.nn.functional.silu(gate) * up), 1)
        rows = (hidden @ narrow.T).bfloat16().float()
        out.index_add_(0, token, factors[token, choice, None] * rows)
    return out


def touched(sets: Sequence[Tokens]) -> float:
    """Experts that have rows, on average."""
    return sum(s.touched for s in sets) / len(sets)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
