"""Checkpoints that hold the experts of a layer in stacks: each expert's matrices, as parts of them.

    model.layers.0.mlp.experts.gate_up_proj_blocks [E, 2 I, H / 32, 16]        a stack, in the file
    model.layers.0.mlp.experts.3.gate_proj.weight_packed [I, H / 2]            a part, by its name

What loads experts asks for matrices by the names that most checkpoints give them; these are made
here.  A part is a view of the mapped file, so none of it is read before somebody wants it.
"""

from collections.abc import Callable, Iterable, Mapping

import torch

Part = Callable[[torch.Tensor], torch.Tensor]
"""One expert's matrix, or what goes with one, of that expert's slice of a stack."""


def _odd_rows(first: int, transposed: bool = False, packed: bool = False) -> Part:
    """Every other row from `first` on: gate and up take turns."""

    def part(stack: torch.Tensor) -> torch.Tensor:
        rows = (stack.t() if transposed else stack)[first::2]
        return rows.flatten(1) if packed else rows

    return part


def _half(second: bool) -> Part:
    return lambda stack: stack.chunk(2)[second]


_GPT_OSS: dict[str, dict[str, Part]] = {
    "mlp.experts.gate_up_proj": {
        "mlp.experts.{}.gate_proj.weight": _odd_rows(0, transposed=True),
        "mlp.experts.{}.up_proj.weight": _odd_rows(1, transposed=True),
    },
    "mlp.experts.gate_up_proj_blocks": {
        "mlp.experts.{}.gate_proj.weight_packed": _odd_rows(0, packed=True),
        "mlp.experts.{}.up_proj.weight_packed": _odd_rows(1, packed=True),
    },
    "mlp.experts.gate_up_proj_scales": {
        "mlp.experts.{}.gate_proj.weight_scale": _odd_rows(0),
        "mlp.experts.{}.up_proj.weight_scale": _odd_rows(1),
    },
    "mlp.experts.gate_up_proj_bias": {
        "mlp.experts.{}.gate_proj.bias": _odd_rows(0),
        "mlp.experts.{}.up_proj.bias": _odd_rows(1),
    },
    "mlp.experts.down_proj": {"mlp.experts.{}.down_proj.weight": torch.Tensor.t},
    "mlp.experts.down_proj_blocks": {
        "mlp.experts.{}.down_proj.weight_packed": lambda stack: stack.flatten(1),
    },
    "mlp.experts.down_proj_scales": {"mlp.experts.{}.down_proj.weight_scale": lambda s: s},
    "mlp.experts.down_proj_bias": {"mlp.experts.{}.down_proj.bias": lambda s: s},
}

_GRANITE: dict[str, dict[str, Part]] = {
    "block_sparse_moe.input_linear.weight": {
        "block_sparse_moe.experts.{}.gate_proj.weight": _half(False),
        "block_sparse_moe.experts.{}.up_proj.weight": _half(True),
    },
    "block_sparse_moe.output_linear.weight": {
        "block_sparse_moe.experts.{}.down_proj.weight": lambda stack: stack,
    },
}

_STACKS = {"gpt_oss": _GPT_OSS, "granitemoe": _GRANITE}
"""By the model type: the end of a stack's name, and those of its parts for an expert."""

MXFP4_EXPERTS = {
    "quant_method": "compressed-tensors",
    "format": "mxfp4-pack-quantized",
    "config_groups": {
        "experts": {
            "targets": [r"re:.*\.experts\.\d+\..*"],
            "weights": {
                "num_bits": 4,
                "type": "float",
                "strategy": "group",
                "group_size": 32,
                "symmetric": True,
                "dynamic": False,
            },
        }
    },
    "ignore": [],
}
"""What gpt-oss's `quant_method: mxfp4` means, in the words of compressed-tensors."""


def parts_of(
    model_type: object, names: Iterable[str], stack: Callable[[str], torch.Tensor]
) -> Mapping[str, tuple[str, Callable[[], torch.Tensor]]]:
    """Parts of the stacks among `names`: by name, the stack's name and what makes the part.

    `stack` reads one of them.
    """
    kinds = _STACKS.get(str(model_type), {})
    found: dict[str, tuple[str, Callable[[], torch.Tensor]]] = {}
    for name in names:
        for ending, parts in kinds.items():
            if not name.endswith(f".{ending}"):
                continue
            prefix = name.removesuffix(ending)
            for part_name, part in parts.items():
                for e in range(stack(name).shape[0]):
                    found[prefix + part_name.format(e)] = name, _reader(stack, name, e, part)
    return found


def _reader(
    stack: Callable[[str], torch.Tensor], name: str, expert: int, part: Part
) -> Callable[[], torch.Tensor]:
    return lambda: part(stack(name)[expert])
