"""Hugging Face causal language models as one graph for prefill and decode.

    imported = import_checkpoint("/models/Qwen3-8B-FP8", max_len=4096)
    imported = import_checkpoint("/models/Qwen3-8B-Q4_K_M.gguf")
    imported = import_config("config.json")       # the graph alone, no weights

transformers builds the model on meta; its linear layers, experts, attention and cache are replaced
by qfuse's operators, and torch.export records one step: T new tokens in, logits and the new caches
out, for every T >= 1.
"""

import difflib
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qfuse.compiler.frontend.checkpoint import read_json, read_quantization
from qfuse.compiler.frontend.expert_tensors import biases_of, load_experts, matrix_names
from qfuse.compiler.frontend.experts import (
    Biased,
    Experts,
    check_config,
    replace_experts,
    transformers_experts,
)
from qfuse.compiler.frontend.fp8 import Fp8
from qfuse.compiler.frontend.fx_import import import_graph
from qfuse.compiler.frontend.imported import Imported, ModelInfo, TensorSpec
from qfuse.compiler.frontend.latent_attention import take_pairs_apart
from qfuse.compiler.frontend.lazy_tensors import Entry, LazyTensors
from qfuse.compiler.frontend.linear import (
    LinearFormat,
    QuantizedLinear,
    empty_quantized_linear,
    replace_linears,
)
from qfuse.compiler.frontend.model_types import MODEL_TYPES
from qfuse.compiler.frontend.source import Source, open_source
from qfuse.compiler.frontend.step import (
    ATTENTION,
    PREFIX,
    PreTrained,
    attention,
    cache_shapes,
    trace_step,
)
from qfuse.compiler.frontend.traces import forgotten_traces
from qfuse.dialects.errors import QfuseError

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies do not depend on the length of the sequence."""

LOGITS = ("last", "all")
DEFAULT_MAX_LEN = 2048

Formats = Callable[[str, int, int], LinearFormat | None]
"""The format of a linear layer by its name, N and K; None: it is not quantized."""


@forgotten_traces()
def import_checkpoint(
    path: str | Path, *, max_len: int | None = None, logits: str = "last"
) -> Imported:
    """Import a checkpoint, a directory or a GGUF file; its tensors stay mapped until packed.

    `max_len` is the capacity of the caches, by default what the model was trained for but at most
    2048.  `logits` "last" gives [1, 1, V] for the last of the T tokens, "all" [1, T, V].
    A linear layer is quantized exactly as the file has it.  Raises QfuseError on anything wrong
    with the checkpoint or not supported.
    """
    started = time.perf_counter()
    source = open_source(path)
    model = empty_model(source.config, source.path, source)
    quantize_like(model, source)
    parameters = load_parameters(model, source)
    loaded = time.perf_counter() - started
    return _import(model, parameters, max_len, logits, source.generation(), {"load": loaded})


@forgotten_traces()
def import_config(
    path: str | Path,
    *,
    max_len: int | None = None,
    logits: str = "last",
    quantize: str | Formats | None = "fp8",
) -> Imported:
    """Import the graph of a model from its config.json (or the directory of one), no weights.

    The formats are those of the config's `quantization_config`.  For a config without one,
    `quantize="fp8"` stands for FP8 in 128x128 blocks with dynamic activations in every linear
    layer but `lm_head`, a function gives each layer its own format, and None stands for no
    quantization.  All `parameters` are meta tensors.
    """
    started = time.perf_counter()
    source = Path(path)
    if source.is_dir():
        source = source / "config.json"
    config = read_json(source)
    if isinstance(quantize, str) and quantize != "fp8":
        raise QfuseError(f'quantize "{quantize}" is not supported; supported: fp8, None')
    quantization = read_quantization(config, source)
    formats: Formats | None
    if quantization is not None:
        formats = quantization.planned
    elif isinstance(quantize, str):
        formats = Fp8().planned
    else:
        formats = quantize
    model = empty_model(config, source)
    if formats is None:
        replace_experts(model, lambda _: None)
    else:
        experts, planned = transformers_experts(model), formats

        def format_of(name: str, rows: int, columns: int, matrix: int = 0) -> LinearFormat | None:
            if name in experts:
                name = matrix_names(model.config.model_type, name, 1)[0][matrix]
            return planned(name.removesuffix(".weight"), rows, columns)

        _quantize(model, format_of, source)
    parameters = dict(_tensors_of(model)) | _computed_buffers(model)
    loaded = time.perf_counter() - started
    return _import(model, LazyTensors(parameters), max_len, logits, {}, {"load": loaded})


def empty_model(
    config: Mapping[str, Any],
    source: Path,
    stored: Source | None = None,
    dtype: torch.dtype | None = None,
    implementation: str = ATTENTION,
) -> PreTrained:
    """The transformers model of a config on meta, in evaluation mode.

    `source` is named in errors.  `dtype` is by default the config's, else that of the embedding in
    `stored`, else bfloat16.  `implementation` names the attention, as transformers does.
    """
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        name = model_type if isinstance(model_type, str) else ""
        near = difflib.get_close_matches(name, MODEL_TYPES, 1, 0.5)
        hint = f"nearest: {near[0]}; " if near else ""
        raise QfuseError(
            f"{source}: model_type {model_type!r} is not supported; "
            f"{hint}supported: {', '.join(MODEL_TYPES)}"
        )
    try:
        from transformers import AutoModelForCausalLM
        from transformers.initialization import no_init_weights
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError as error:
        raise QfuseError(
            f"models need transformers >= 5, pip install 'qfuse[hf]': {error}"
        ) from error

    # There is no mask function of this name on purpose: transformers then builds no mask.
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
    entries = {k: v for k, v in config.items() if k != "quantization_config"}
    try:
        parsed = CONFIG_MAPPING[model_type].from_dict(entries)
        # transformers writes some entries by another name than released configs have
        aliases = {name: getattr(parsed, name) for name in parsed.attribute_map}
        check_config(model_type, {**config, **parsed.to_dict(), **aliases}, source)
        parsed._attn_implementation = implementation
        if dtype is None:
            dtype = _model_dtype(parsed, source, stored)
        with torch.device("meta"), no_init_weights():
            model = AutoModelForCausalLM.from_config(parsed, dtype=dtype)
    except QfuseError:
        raise
    except Exception as error:
        # of several lines the first names the field, the next what is wrong with it
        reason = " ".join(str(error).split()) or type(error).__name__
        raise QfuseError(
            f"{source}: transformers refuses this config: {textwrap.shorten(reason, 200)}"
        ) from error
    for rope in _rope_types(parsed.rope_parameters or {}):
        if rope not in ROPE_TYPES:
            raise QfuseError(
                f'{source}: rope_type "{rope}" is not supported; supported: {", ".join(ROPE_TYPES)}'
            )
    if parsed.tie_word_embeddings:
        model.tie_weights()
    if MODEL_TYPES[model_type].transposed:
        for experts in transformers_experts(model).values():
            for weight in (experts.gate_up_proj, experts.down_proj):
                weight.data = weight.data.transpose(1, 2)
    endings = MODEL_TYPES[model_type].in_f32
    for name, tensor in _tensors_of(model).items():
        if name.endswith(endings):
            tensor.data = tensor.data.float()
    return model.eval().requires_grad_(False)


def _rope_types(parameters: Mapping[str, Any]) -> set[str]:
    """Kinds of rotary embeddings in a config: of all layers, or by the type of layer."""
    layers = [entry for entry in parameters.values() if isinstance(entry, Mapping)]
    return {entry.get("rope_type", "default") for entry in layers or [parameters]}


def quantize_like(model: PreTrained, source: Source) -> None:
    """Make exactly those linear layers and experts quantized that the file has so.

    All experts become modules of qfuse; the first of a layer says what all of them are.  They have
    biases where the checkpoint has some.
    """

    experts = transformers_experts(model)

    def format_of(name: str, rows: int, columns: int, matrix: int = 0) -> LinearFormat | None:
        if name in experts:
            name = _matrices(model, name, 1)[0][matrix].removesuffix(".weight")
        return source.linear_format(_stored(model, name), rows, columns)

    def biased(name: str, experts: int) -> Biased:
        return biases_of(_matrices(model, name, experts), source)

    _quantize(model, format_of, source.path, biased)


def _quantize(
    model: PreTrained,
    format_of: Callable[..., LinearFormat | None],
    source: Path,
    biased: Callable[[str, int], Biased] = lambda *_: (False, False),
) -> None:
    """Give every linear layer, and all experts, the formats that `format_of` has for them.

    It is called with a name, N and K, and for experts with which of their matrices is meant.
    """

    def convert(name: str, linear: nn.Linear) -> nn.Module | None:
        format = format_of(name, linear.out_features, linear.in_features)
        return None if format is None else empty_quantized_linear(linear, format)

    def convert_experts(name: str) -> tuple[LinearFormat, LinearFormat] | None:
        _, hidden, inner = model.get_submodule(name).down_proj.shape
        gate = format_of(name, inner, hidden, 0)
        down = format_of(name, hidden, inner, 2)
        if gate is None:
            return None  # where down is quantized, loading says what gate lacks
        if down is None:
            raise QfuseError(
                f"{source}: of experts {name}, gate is quantized but down is not; "
                "supported: all of a layer's experts, or none"
            )
        return gate, down

    replace_linears(model, convert)
    replace_experts(model, convert_experts, biased)


def load_parameters(model: PreTrained, source: Source) -> LazyTensors:
    """The tensor of every parameter and buffer of a meta model, checked, mapped from its file.

    What lies otherwise in the file than the operators take it, such as stacked experts, is made
    each time it is read.
    """
    loaded: dict[str, Entry] = {}
    loaded |= {
        name: source.buffer(name, buffer) for name, buffer in _computed_buffers(model).items()
    }
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            shape = (module.out_features, module.in_features)
            stored = _stored(model, name)
            format = source.linear_format(stored, *shape)
            assert format is not None
            tensors = source.load_linear(stored, *shape, format)
            loaded |= {f"{name}.{leaf}": tensor for leaf, tensor in tensors.items()}
        elif isinstance(module, Experts):
            files = _matrices(model, name, module.experts)
            tensors = load_experts(module, files, source)
            loaded |= {f"{name}.{leaf}": tensor for leaf, tensor in tensors.items()}
    for name, meta in _tensors_of(model).items():
        if name not in loaded:
            loaded[name] = source.plain(_stored(model, name), tuple(meta.shape), meta.dtype)
    return LazyTensors(loaded)


def _tensors_of(model: PreTrained) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, each once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _stored(model: PreTrained, name: str) -> str:
    """What checkpoints call the module or tensor `name` of transformers' model."""
    for ours, theirs in MODEL_TYPES[model.config.model_type].renamed:
        name = name.replace(ours, theirs)
    return name


def _matrices(model: PreTrained, name: str, experts: int) -> list[tuple[str, str, str]]:
    """What checkpoints call the matrices of the first `experts` experts of the module `name`."""
    return matrix_names(model.config.model_type, _stored(model, name), experts)


def _model_dtype(config: Any, source: Path, stored: Source | None) -> torch.dtype:
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)
    if dtype is None and stored is not None:
        dtype = stored.stored_dtype("model.embed_tokens.weight")
    dtype = dtype or torch.bfloat16
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise QfuseError(
            f"{source}: dtype {dtype} is not supported; supported: bfloat16, float16, float32"
        )
    return dtype


def _computed_buffers(model: PreTrained) -> dict[str, torch.Tensor]:
    """Buffers that no checkpoint stores: rotary frequencies, computed as transformers does, and
    what Gemma multiplies embeddings by."""
    buffers: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if not module._non_persistent_buffers_set:
            continue
        if (factor := getattr(module, "scalar_embed_scale", None)) is not None:
            buffers[f"{name}.embed_scale"] = torch.tensor(factor)
            continue
        real = type(module)(config=model.config)
        for buffer in module._non_persistent_buffers_set:
            buffers[f"{name}.{buffer}"] = real.get_buffer(buffer)
    return buffers


def _import(
    model: PreTrained,
    parameters: LazyTensors,
    max_len: int | None,
    logits: str,
    generation: Mapping[str, Any],
    timings: dict[str, float],
) -> Imported:
    config = model.config
    limit = config.max_position_embeddings
    max_len = min(limit, DEFAULT_MAX_LEN) if max_len is None else max_len
    if not 1 <= max_len <= limit:
        raise QfuseError(
            f"max_len {max_len} is not between 1 and the model's max_position_embeddings {limit}"
        )
    if logits not in LOGITS:
        raise QfuseError(f'logits "{logits}" is not one of {", ".join(LOGITS)}')

    started = time.perf_counter()
    parameters = take_pairs_apart(model, parameters)
    step = trace_step(model, max_len, logits)
    timings["export"] = time.perf_counter() - started

    started = time.perf_counter()
    module = import_graph(step.graph, step.arguments, step.results, strip=PREFIX)
    timings["import"] = time.perf_counter() - started
    names = [step.arguments[n.name] for n in step.graph.nodes if n.op == "placeholder"]

    shapes = dict(zip(("key_cache", "value_cache"), cache_shapes(config, max_len), strict=True))
    width = 1 if logits == "last" else None
    return Imported(
        module=module,
        parameters=parameters.select([a.name for a in names if a.kind == "parameter"]),
        inputs=(
            TensorSpec("input_ids", (1, None), torch.int64),
            TensorSpec("position", (None,), torch.int64),
        ),
        outputs=(TensorSpec("logits", (1, width, config.vocab_size), model.dtype),),
        caches=tuple(
            TensorSpec(a.name, shapes[a.name.partition(".")[0]], model.dtype)
            for a in names
            if a.kind == "cache"
        ),
        model=ModelInfo(
            model_type=config.model_type,
            config=config.to_dict(),
            vocab_size=config.vocab_size,
            max_len=max_len,
            logits=logits,
            bos_token_id=config.bos_token_id,
            eos_token_ids=_ids(generation.get("eos_token_id", config.eos_token_id)),
        ),
        timings=timings,
    )


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
