"""Experts of mixture-of-experts layers: modules over stacked weights, and reading those.

transformers holds the experts of a layer as two stacked parameters, `gate_up_proj` [E, 2 I, H] and
`down_proj` [E, H, I]; checkpoints hold three matrices for each expert.  Modules here take the
place of the former, call one operator of qfuse, and are filled from the latter.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qfuse.compiler import torch_moe, torch_ops
from qfuse.compiler.block_scaled import dequantize_blocks
from qfuse.compiler.frontend.checkpoint import SCALE_SUFFIX, Checkpoint, dtype_name
from qfuse.compiler.frontend.lazy_tensors import Entry, Filled
from qfuse.compiler.frontend.linear import scale_shape
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

_MATRICES = {"mixtral": ("w1", "w3", "w2")}
_USUAL_MATRICES = ("gate_proj", "up_proj", "down_proj")
"""Names of an expert's gate, up and down projection in checkpoints of a model type."""

_EXTENTS = {
    "qwen3_moe": ("num_experts", "moe_intermediate_size"),
    "mixtral": ("num_local_experts", "intermediate_size"),
    "deepseek_v3": ("n_routed_experts", "moe_intermediate_size"),
}
"""What the config of a model type calls the number of experts and their width."""

_UNKNOWN_GLUS = ("mlp_gate_softcap", "mlp_up_softcap", "swiglu_limits", "swiglu_limits_shared")
"""Entries that make of gate and up what the operators have no name for."""

_ONLY = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
"""Entries of DeepSeek's configs that transformers ignores, and the value it takes for granted."""


Biased = tuple[bool, bool]
"""Whether there are biases of gate and up, and of down."""

_BIASES = {"gate_up_proj_bias": (0, 1), "down_proj_bias": (2,)}
"""Stacked biases, and which of an expert's matrices they go with."""


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
    """Experts over block-scaled FP8 weights, on meta: the call of `qfuse::moe_experts`.

    The parameters carry the names of transformers' FP8 experts: `gate_up_proj`, `down_proj` and
    the same + `_scale_inv` (multipliers); their shapes are those the operator asks for, so up
    rows begin at a block boundary.
    """

    gate_up_proj: nn.Parameter
    down_proj: nn.Parameter

    def __init__(
        self,
        original: nn.Module,
        glu: Glu,
        biased: Biased,
        weight_block: tuple[int, int],
        dtype: torch.dtype,
    ) -> None:
        super().__init__(original, glu, biased)
        self.weight_block = list(weight_block)
        self.input_block = [1, weight_block[1]]
        padded = torch_moe.padded_rows(self.intermediate, weight_block[0])
        blocks, columns = scale_shape(self.intermediate, self.hidden, weight_block)
        shapes = {
            "gate_up_proj": ((padded + self.intermediate, self.hidden), dtype),
            f"gate_up_proj{SCALE_SUFFIX}": ((2 * blocks, columns), torch.float32),
            "down_proj": ((self.hidden, self.intermediate), dtype),
            f"down_proj{SCALE_SUFFIX}": (
                scale_shape(self.hidden, self.intermediate, weight_block),
                torch.float32,
            ),
        }
        for name, (shape, type_) in shapes.items():
            empty = torch.empty(self.experts, *shape, dtype=type_, device="meta")
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))

    def forward(
        self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        return torch.ops.qfuse.moe_experts(
            hidden,
            top_k_index,
            top_k_weights,
            self.gate_up_proj,
            self.get_parameter(f"gate_up_proj{SCALE_SUFFIX}"),
            self.down_proj,
            self.get_parameter(f"down_proj{SCALE_SUFFIX}"),
            self.intermediate,
            self.weight_block,
            self.input_block,
            *self.more,
        )

    def dequantize(self, leaf: str, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """f32 values of one of the parameters, without rows that belong to no part."""
        values = dequantize_blocks(codes, scale, self.weight_block)
        if leaf == "down_proj":
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
        and module.gate_up_proj.dim() == 3
    }


def replace_experts(
    model: Any,
    convert: Callable[[str], tuple[tuple[int, int], torch.dtype] | None],
    biased: Callable[[str, int], Biased] = lambda *_: (False, False),
) -> None:
    """Put modules of this file in the place of all transformers' experts.

    `convert(name)` returns the weight block and storage type of quantized experts, None for plain
    ones; `biased(name, E)` whether they have biases.  Raises QfuseError on an activation the
    operators do not have.
    """
    for name, module in transformers_experts(model).items():
        glu, quantized = _glu_of(model.config), convert(name)
        biases = biased(name, _extents(module)[0])
        new = (
            QuantizedExperts(module, glu, biases, *quantized)
            if quantized
            else DenseExperts(module, glu, biases)
        )
        model.set_submodule(name, new)


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
    if model_type not in _EXTENTS:
        return

    def refuse(name: str, expected: str) -> None:
        raise QfuseError(f"{source}: {name} is {config.get(name)!r}; expected {expected}")

    count, width = _EXTENTS[model_type]
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


def load_experts(
    experts: Experts, matrices: Sequence[tuple[str, str, str]], checkpoint: Checkpoint
) -> dict[str, Entry]:
    """The parameters of `experts` by their name in it, for `LazyTensors`.

    `matrices` names each expert's gate, up and down weight in the file.  Everything is checked
    here and raises QfuseError; the weights themselves are read when asked for.
    """
    hidden, inner = experts.hidden, experts.intermediate
    shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
    gate_up_rows = experts.gate_up_proj.shape[1]
    dtype = experts.gate_up_proj.dtype
    scales: list[list[torch.Tensor]] = []
    for names in matrices:
        scales.append([])
        for name, shape in zip(names, shapes, strict=True):
            if isinstance(experts, DenseExperts):
                checkpoint.plain(name, shape, dtype)
                continue
            block = (experts.weight_block[0], experts.weight_block[1])
            codes, scale = checkpoint.quantized(name, shape, block)
            if codes.dtype != dtype:
                raise QfuseError(
                    f"tensor {name} of {checkpoint.file_of(name)} is {dtype_name(codes.dtype)}, "
                    f"the first expert's {dtype_name(dtype)}; a layer's experts must have one type"
                )
            scales[-1].append(scale)

    def gate_up(stack: torch.Tensor) -> None:
        for slot, (gate, up, _) in zip(stack, matrices, strict=True):
            slot[:inner].copy_(checkpoint.raw(gate))
            slot[inner:-inner].zero_()  # rows between the two parts belong to neither
            slot[-inner:].copy_(checkpoint.raw(up))

    def down(stack: torch.Tensor) -> None:
        for slot, (_, _, name) in zip(stack, matrices, strict=True):
            slot.copy_(checkpoint.raw(name))

    loaded: dict[str, Entry] = {
        "gate_up_proj": Filled((len(matrices), gate_up_rows, hidden), dtype, gate_up),
        "down_proj": Filled((len(matrices), hidden, inner), dtype, down),
    }
    for leaf, places in _BIASES.items():
        bias = getattr(experts, leaf)
        if bias is None:
            continue
        rows = [
            torch.cat(
                [checkpoint.plain(_bias(names[i]), (shapes[i][0],), bias.dtype) for i in places]
            )
            for names in matrices
        ]
        loaded[leaf] = torch.stack(rows)
    if isinstance(experts, QuantizedExperts):
        both = [torch.cat((gate, up)) for gate, up, _ in scales]
        loaded[f"gate_up_proj{SCALE_SUFFIX}"] = torch.stack(both)
        loaded[f"down_proj{SCALE_SUFFIX}"] = torch.stack([down for *_, down in scales])
    return loaded


def biases_of(matrices: Sequence[tuple[str, str, str]], checkpoint: Checkpoint) -> Biased:
    """Which biases experts have in a file: where one matrix has its own, all have to."""
    gate_up, down = (
        any(_bias(names[i]) in checkpoint for names in matrices for i in places)
        for places in _BIASES.values()
    )
    return gate_up, down


def _bias(weight: str) -> str:
    """The name of the bias beside a weight."""
    return f"{weight.removesuffix('weight')}bias"


def matrix_names(model_type: str, prefix: str, experts: int) -> list[tuple[str, str, str]]:
    """Names of each expert's gate, up and down weight in a checkpoint, for experts at `prefix`."""
    gate, up, down = _MATRICES.get(model_type, _USUAL_MATRICES)
    return [
        (f"{prefix}.{e}.{gate}.weight", f"{prefix}.{e}.{up}.weight", f"{prefix}.{e}.{down}.weight")
        for e in range(experts)
    ]


def _extents(original: nn.Module) -> tuple[int, int, int]:
    """E, H and I of transformers' experts."""
    experts, hidden, intermediate = original.get_parameter("down_proj").shape
    return experts, hidden, intermediate
