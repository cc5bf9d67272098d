"""The model types that checkpoints may have, and what sets each apart, as data.

A type belongs here once `test/frontend/test_architectures.py` has it: its checkpoint, as
transformers writes it, gives transformers' logits for any cut of a prompt into steps.
"""

from dataclasses import dataclass

USUAL_MATRICES = ("gate_proj", "up_proj", "down_proj")
MIXTRAL_MATRICES = ("w1", "w3", "w2")
MIXTRAL_BLOCKS = ((".mlp.", ".block_sparse_moe."),)
ROUTERS_IN_F32 = (".e_score_correction_bias", ".mlp.gate.weight")


@dataclass(frozen=True)
class ModelType:
    """What transformers and checkpoints agree on for a `model_type`, where it is not the usual.

    `renamed` are what transformers calls parts of the names, and what checkpoints call them;
    `in_f32` are the ends of the names of tensors that it computes with in f32 whatever its dtype.
    Of models with experts, `extents` are the config's entries for the number of experts and their
    width, and `matrices` the names of an expert's gate, up and down projection in checkpoints;
    `transposed` says that transformers' parameters have inputs before outputs.
    """

    renamed: tuple[tuple[str, str], ...] = ()
    in_f32: tuple[str, ...] = ()
    extents: tuple[str, str] | None = None
    matrices: tuple[str, str, str] = USUAL_MATRICES
    transposed: bool = False


MODEL_TYPES: dict[str, ModelType] = {
    "llama": ModelType(),
    "mistral": ModelType(),
    "ministral3": ModelType(),
    "qwen2": ModelType(),
    "qwen3": ModelType(),
    "gemma": ModelType(),
    "gemma2": ModelType(),
    "gemma3_text": ModelType(),
    "phi": ModelType(),
    "phi3": ModelType(),
    "granite": ModelType(),
    "olmo": ModelType(),
    "olmo2": ModelType(),
    "olmo3": ModelType(),
    "cohere": ModelType(),
    "cohere2": ModelType(),
    "smollm3": ModelType(),
    "glm": ModelType(),
    "glm4": ModelType(),
    "exaone4": ModelType(),
    "seed_oss": ModelType(),
    "ernie4_5": ModelType(),
    "helium": ModelType(),
    "nemotron": ModelType(),
    "starcoder2": ModelType(),
    "stablelm": ModelType(),
    "gpt_neox": ModelType(renamed=(("lm_head", "embed_out"),)),
    "qwen2_moe": ModelType(extents=("num_experts", "moe_intermediate_size")),
    "qwen3_moe": ModelType(extents=("num_experts", "moe_intermediate_size")),
    "olmoe": ModelType(extents=("num_experts", "intermediate_size")),
    "mixtral": ModelType(
        renamed=MIXTRAL_BLOCKS,
        extents=("num_local_experts", "intermediate_size"),
        matrices=MIXTRAL_MATRICES,
    ),
    "phimoe": ModelType(
        renamed=((".mlp.router.", ".block_sparse_moe.gate."), *MIXTRAL_BLOCKS),
        extents=("num_local_experts", "intermediate_size"),
        matrices=MIXTRAL_MATRICES,
    ),
    "granitemoe": ModelType(
        renamed=((".router.", ".router.layer."),),
        extents=("num_local_experts", "intermediate_size"),
    ),
    "gpt_oss": ModelType(extents=("num_local_experts", "intermediate_size"), transposed=True),
    "glm4_moe": ModelType(
        in_f32=ROUTERS_IN_F32, extents=("n_routed_experts", "moe_intermediate_size")
    ),
    "deepseek_v3": ModelType(
        in_f32=ROUTERS_IN_F32, extents=("n_routed_experts", "moe_intermediate_size")
    ),
}
