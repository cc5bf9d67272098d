"""Static scales of inputs that are equal: one argument of the program in the place of all."""

import torch

from qfuse.compiler.frontend.imported import Imported
from qfuse.compiler.remarks import argument_kind, argument_name
from qfuse.dialects.bindings import ir

_NUMBERS = ("!torch.vtensor<[1],f32>", "tensor<1xf32>")


def share_equal_scales(imported: Imported) -> None:
    """Let parameters of one f32 that hold the same number be read through the first of them.

    A checkpoint with static scales has an `input_scale` for each linear layer.  Those of q, k and
    v, or of gate and up, were calibrated on one value and are equal as a rule: read through one
    argument, they quantize it once, and the products can be joined.  Numbers that differ stay, to
    the last bit; so does everything where only a config was imported.
    """
    (function,) = (op for op in imported.module.body.operations if op.operation.name == "func.func")
    first: dict[tuple[str, int], ir.Value] = {}
    for argument in function.operation.regions[0].blocks[0].arguments:
        kind = str(argument.type)
        if kind not in _NUMBERS or argument_kind(argument) != "parameter":
            continue
        tensor = imported.parameters[argument_name(argument)]
        if tensor.is_meta:
            continue
        bits = int(tensor.view(torch.int32).item())
        kept = first.setdefault((kind, bits), argument)
        if kept != argument:
            argument.replace_all_uses_with(kept)
