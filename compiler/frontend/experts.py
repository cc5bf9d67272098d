"""Experts of mixture-of-experts layers: modules over stacked weights.

transformers holds the experts of a layer as two stacked parameters, `gate_up_proj` [E, 2 I, H] and
`down_proj` [E, H, I]; checkpoints hold three matrices for each expert.  Modules here take the
place of the former, call one operator of qfuse, and are filled from the latter.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qfuse.compiler import torch_moe, torch_ops
from qfuse.compiler.frontend.checkpoint import SCALE_SUFFIX
from qfuse.compiler.frontend.linear import INPUT_SCALE, SCALE, WEIGHT, ZERO_POINT, LinearFormat
from qfuse.compiler.frontend.model_types import MODEL_TYPES
from qfuse.compiler.packed_weights import dequantize_weight
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.glu import SWIGLU_OAI, Glu

assert torch_ops.NAMESPACE == "qfuse"  # the operators below are registered

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""The `hidden_act` of a config to the operators' name of it."""

_UNKNOWN_GLUS = ("mlp_gate_softcap", "mlp_up_softcap", "swiglu_limits", "swiglu_limits_shared")
"""Entries that make of gate and up what the operators have no name for."""

_ONLY = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
"""Entries of DeepSeek's configs that transformers ignores, and the value it takes for granted."""


Biased = tuple[bool, bool]
"""Whether there are biases of gate and up, and of down."""

ZERO_SUFFIX, INPUT_SUFFIX = "_zero_point", "_input_scale"
LEAVES = {WEIGHT: "", SCALE: SCALE_SUFFIX, ZERO_POINT: ZERO_SUFFIX}
"""Tensors of a linear layer, and what the names of such a stack end in."""


class _Stacked(nn.Module):
    """What experts of both kinds have beside their weights: a GLU, and perhaps biases.

    `gate_up_proj_bias` [E, 2 I] and `down_proj_bias` [E, H] are parameters in the model's type,
    or None.
    """

    gate_up_proj_bias: nn.Parameter | None
    down_proj_bias: nn.Parameter | None

    def __init__(self, original: nn.Module, glu: Glu, biased: Biased) -> None:
        super().__init__()
        self.experts, self.hidden, self.intermediate = _extents(original)
        self.glu = glu
        dtype = original.get_parameter("down_proj").dtype
        widths = {"gate_up_proj_bias": 2 * self.intermediate, "down_proj_bias": self.hidden}
        for (name, width), there in zip(widths.items(), biased, strict=True):
            empty = torch.empty(self.experts, width, dtype=dtype, device="meta")
            bias = nn.Parameter(empty, requires_grad=False) if there else None
            self.register_parameter(name, bias)

    @property
    def ordinary(self) -> bool:
        """Whether transformers' own modules of plain experts compute this, too."""
        biased = self.gate_up_proj_bias is not None or self.down_proj_bias is not None
        return not biased and self.glu == Glu(self.glu.act) and self.glu.act != SWIGLU_OAI

    @property
    def more(self) -> tuple[Any, ...]:
        """The last arguments of the operators: the GLU, and the biases."""
        glu = self.glu
        limit = None if glu.limit == math.inf else glu.limit
        alpha = glu.alpha if glu.act == SWIGLU_OAI else None
        return glu.act, limit, alpha, self.gate_up_proj_bias, self.down_proj_bias


class QuantizedExperts(_Stacked):
    """Experts over quantized weights, on meta: the call of `qfuse::moe_experts`.

    The parameters carry the names of transformers' FP8 experts: `gate_up_proj`, `down_proj`, the
    same + `_scale_inv` (multipliers) and, where there are any, + `_zero_point`; their shapes are
    those the operator asks for, so up rows begin at a block boundary.  Static scales of inputs, the
    same + `_input_scale`, are one for all experts.
    """

    gate_up_proj: nn.Parameter
    down_proj: nn.Parameter

    def __init__(
        self, original: nn.Module, glu: Glu, biased: Biased, gate: LinearFormat, down: LinearFormat
    ) -> None:
        """`gate` is the format of up, too."""
        super().__init__(original, glu, biased)
        self.formats = {"gate_up_proj": gate, "down_proj": down}
        padded = torch_moe.padded_rows(self.intermediate, gate.weight_block[0])
        joined = gate.shapes(padded + self.intermediate, self.hidden)[WEIGHT]
        of_part = gate.shapes(self.intermediate, self.hidden)
        self._register("gate_up_proj", {**of_part, WEIGHT: joined}, parts=2)
        self._register("down_proj", down.shapes(self.hidden, self.intermediate))

    def _register(
        self,
        name: str,
        shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        parts: int = 1,
    ) -> None:
        """The stacked parameters of one product; scales of `parts` parts lie one below another."""
        for leaf, suffix in LEAVES.items():
            if leaf not in shapes:
                self.register_parameter(f"{name}{suffix}", None)
                continue
            (rows, columns), dtype = shapes[leaf]
            rows = rows if leaf == WEIGHT else rows * parts
            empty = torch.empty(self.experts, rows, columns, dtype=dtype, device="meta")
            self.register_parameter(f"{name}{suffix}", nn.Parameter(empty, requires_grad=False))
        scale = None
        if INPUT_SCALE in shapes:
            shape, dtype = shapes[INPUT_SCALE]
            scale = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), False)
        self.register_parameter(f"{name}{INPUT_SUFFIX}", scale)

    def forward(
        self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        gate, down = self.formats.values()
        return torch.ops.qfuse.moe_experts(
            hidden,
            top_k_index,
            top_k_weights,
            self.gate_up_proj,
            self.get_parameter(f"gate_up_proj{SCALE_SUFFIX}"),
            self.down_proj,
            self.get_parameter(f"down_proj{SCALE_SUFFIX}"),
            self.intermediate,
            list(gate.weight_block),
            list(gate.input_block),
            *self.more,
            gate.packing,
            gate.input_format,
            getattr(self, f"gate_up_proj{ZERO_SUFFIX}"),
            getattr(self, f"down_proj{ZERO_SUFFIX}"),
            list(down.weight_block),
            list(down.input_block),
            down.packing,
            getattr(self, f"gate_up_proj{INPUT_SUFFIX}"),
            getattr(self, f"down_proj{INPUT_SUFFIX}"),
        )

    def dequantize(self, name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """f32 values of a stacked weight, without rows that belong to no part.

        `tensors` has the parameters of this module by their names.
        """
        of_name = [tensors.get(f"{name}{suffix}") for suffix in LEAVES.values()]
        format = self.formats[name]
        rows = []
        for e in range(self.experts):
            codes, scale, zero = (None if t is None else t[e] for t in of_name)
            assert codes is not None and scale is not None
            rows.append(dequantize_weight(codes, scale, format.weight_block, format.packing, zero))
        values = torch.stack(rows)
        if name == "down_proj":
            return values
        return torch.cat((values[:, : self.intermediate], values[:, -self.intermediate :]), 1)


class DenseExperts(_Stacked):
    """Experts over plain weights: the call of `qfuse::dense_experts`, with transformers' names."""

    def __init__(self, original: nn.Module, glu: Glu, biased: Biased) -> None:
        super().__init__(original, glu, biased)
        self.gate_up_proj = original.get_parameter("gate_up_proj")
        self.down_proj = original.get_parameter("down_proj")

    def forward(
        self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        return torch.ops.qfuse.dense_experts(
            hidden, top_k_index, top_k_weights, self.gate_up_proj, self.down_proj, *self.more
        )


Experts = QuantizedExperts | DenseExperts


def transformers_experts(model: nn.Module) -> dict[str, Any]:
    """transformers' modules of stacked experts, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if not isinstance(module, Experts)
        and all(hasattr(module, p) for p in ("gate_up_proj", "down_proj"))
        and isinstance(module.gate_up_proj, nn.Parameter)
        and module.gate_up_proj.dim() == 3
    }


def replace_experts(
    model: Any,
    convert: Callable[[str], tuple[LinearFormat, LinearFormat] | None],
    biased: Callable[[str, int], Biased] = lambda *_: (False, False),
) -> None:
    """Put modules of this file in the place of all transformers' experts.

    `convert(name)` returns the formats of gate and up and of down of quantized experts, None for
    plain ones; `biased(name, E)` whether they have biases.  Raises QfuseError on an activation or
    a format the operators do not have.
    """
    for name, module in transformers_experts(model).items():
        glu, quantized = _glu_of(model.config), convert(name)
        biases = biased(name, _extents(module)[0])
        if quantized is None:
            model.set_submodule(name, DenseExperts(module, glu, biases))
            continue
        if (why := _format_error(*quantized)) is not None:
            raise QfuseError(f"experts {name} {why}")
        model.set_submodule(name, QuantizedExperts(module, glu, biases, *quantized))


def _format_error(gate: LinearFormat, down: LinearFormat) -> str | None:
    """Why experts of such formats have no operator, or None."""
    if any(f.input_block and f.input_format == "tensor" for f in (gate, down)):
        return (
            'quantize their inputs with one scale, found anew ("tensor"), which is not supported; '
            "supported: static scales, a scale for each token or group, or plain inputs"
        )
    if gate.input_format != down.input_format or bool(gate.input_block) != bool(down.input_block):
        return (
            f"quantize the input of gate as {_input_of(gate)}, that of down as {_input_of(down)}; "
            "supported: both in one way"
        )
    return None


def _input_of(format: LinearFormat) -> str:
    return f"{format.input_format} {list(format.input_block)}" if format.input_block else "plain"


def _glu_of(config: Any) -> Glu:
    """What experts make of gate and up, as transformers' FP8Experts read it from a config.

    A `swiglu_limit` clamps them, and with `swiglu_alpha` they are gpt-oss's whatever `hidden_act`
    says.  transformers' modules of plain experts ignore both; here they do not depend on how the
    weights are stored.
    """
    limit, alpha = (getattr(config, f"swiglu_{name}", None) for name in ("limit", "alpha"))
    bound = math.inf if limit is None else float(limit)
    if alpha is not None:
        return Glu(SWIGLU_OAI, bound, float(alpha))
    act = _ACTIVATIONS.get(config.hidden_act)
    if act is None:
        raise QfuseError(
            f'hidden_act "{config.hidden_act}" is not supported in experts; supported: '
            + ", ".join(_ACTIVATIONS)
        )
    return Glu(act, bound)


def check_config(model_type: str, config: Mapping[str, Any], source: Path) -> None:
    """Raise QfuseError, naming the entry, unless experts and routers of `config` make sense.

    `config` has every entry, defaults included.  A model type without experts passes.
    """
    extents = MODEL_TYPES[model_type].extents
    if extents is None:
        return

    def refuse(name: str, expected: str) -> None:
        raise QfuseError(f"{source}: {name} is {config.get(name)!r}; expected {expected}")

    count, width = extents
    experts, chosen = config[count], config["num_experts_per_tok"]
    for name in (count, width):
        if config[name] < 1:
            refuse(name, "1 or more")
    if not 1 <= chosen <= experts:
        refuse("num_experts_per_tok", f"1 to {count}, which is {experts}")
    for name in ("swiglu_limit", "swiglu_alpha"):
        number = config.get(name)
        if number is not None and not (type(number) in (int, float) and 0 < number < math.inf):
            refuse(name, "a positive number")
    if config.get("swiglu_alpha") is not None and config.get("swiglu_limit") is None:
        refuse("swiglu_limit", "a positive number, as there is a swiglu_alpha")
    for name in _UNKNOWN_GLUS:
        if config.get(name) is not None:
            refuse(name, "none: experts with it are not supported")
    if model_type != "deepseek_v3":
        return
    for name, value in _ONLY.items():
        if config.get(name, value) != value:
            refuse(name, f"{value!r}, all that is supported")
    groups, used = config["n_group"], config["topk_group"]
    if groups < 1 or experts % groups or experts // groups < 2:
        refuse("n_group", f"a divisor of {count}, {experts}, that leaves 2 experts a group or more")
    if not 1 <= used <= groups:
        refuse("topk_group", f"1 to n_group, which is {groups}")
    if chosen > used * (experts // groups):
        refuse("num_experts_per_tok", f"at most the experts of {used} of {groups} groups")
    for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
        if not config[name] or config[name] < 1:
            refuse(name, "1 or more")
    if config["num_key_value_heads"] != config["num_attention_heads"]:
        refuse("num_key_value_heads", f"num_attention_heads, {config['num_attention_heads']}")


def _extents(original: nn.Module) -> tuple[int, int, int]:
    """E, H and I of transformers' experts."""
    experts, hidden, intermediate = original.get_parameter("down_proj").shape
    return experts, hidden, intermediate
