"""One step of generation as a graph: T new tokens in, logits and the new caches out.

The model's attention and cache are replaced by qfuse's operators, and torch.export records the
step for every T >= 1, so that prefill and decode run the same program.
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from qfuse.compiler import torch_ops
from qfuse.compiler.frontend.functional import functionalize
from qfuse.compiler.frontend.fx_import import Argument, simplify, unused
from qfuse.compiler.frontend.latent_attention import expand_latents
from qfuse.compiler.frontend.routers import select_by_operator
from qfuse.compiler.frontend.traces import export
from qfuse.dialects.errors import QfuseError

ATTENTION = torch_ops.NAMESPACE
"""Name of our attention among transformers' implementations."""

PreTrained: TypeAlias = Any
"""A transformers `PreTrainedModel`: a module with a config, which no type checker sees into."""

PREFIX = "model."
"""What `Step` adds in front of the names of the model's parameters."""


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface, over the caches of the `Step` that calls the model.

    Caps and sinks have no kernel: attention with one of them is written out in torch.
    """
    if not getattr(module, "is_causal", True):
        raise QfuseError("attention to later tokens is not supported; supported: causal attention")
    caches = _CACHES.get()
    keys, values = caches.write(module.layer_idx, key, value)
    window = int(rest.get("sliding_window", _window_of(module)) or 0)
    if softcap is None and s_aux is None:
        out = torch.ops.qfuse.attention(
            query, keys, values, caches.position, float(scaling), window
        )
    else:
        scores = _Scores(caches.position, float(scaling), window, softcap, s_aux)
        out = scores.attend(query, keys, values)
    return out, None


def _window_of(module: Any) -> int | None:
    """The window of a layer that names none and leaves it to a mask, of which we make none."""
    config, types = module.config, getattr(module.config, "layer_types", None)
    if types is not None and types[module.layer_idx] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


@dataclass(frozen=True)
class _Scores:
    """Attention with a cap on its scores (Gemma 2) or sinks beside them (gpt-oss), in torch.

    As transformers computes it, with slots of the caches for keys: those after a token do not
    count for it.  `sinks` are one score for each head that takes its share and gives nothing.
    """

    position: torch.Tensor
    scaling: float
    window: int
    softcap: float | None
    sinks: torch.Tensor | None

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """[B, T, H, D] of query [B, H, T, D] and caches [B, heads of keys, S, D]."""
        groups = query.shape[1] // keys.shape[1]
        keys, values = (t.repeat_interleave(groups, dim=1) for t in (keys, values))
        scores = torch.matmul(query, keys.transpose(2, 3)) * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores.float().masked_fill(~self._visible(keys.shape[2]), -torch.inf)
        if self.sinks is not None:
            sinks = self.sinks.float().reshape(1, -1, 1, 1).expand(-1, -1, query.shape[2], 1)
            scores = torch.cat((scores, sinks), -1)
        shares = torch.softmax(scores, -1)[..., : keys.shape[2]].to(values.dtype)
        return torch.matmul(shares, values).transpose(1, 2)

    def _visible(self, slots: int) -> torch.Tensor:
        """Which slots [T, S] each token may attend to."""
        back = self.position[:, None] - torch.arange(slots, device=self.position.device)
        return (back >= 0) & (back < self.window) if self.window else back >= 0


class _Caches:
    """transformers' cache interface over tensors that are arguments of the graph.

    Writing makes new tensors, so the exported graph has no side effects.
    """

    is_compileable = False

    def __init__(
        self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor], position: torch.Tensor
    ) -> None:
        self.keys, self.values, self.position = list(keys), list(values), position
        self.is_sliding = [False] * len(self.keys)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Nothing: `attention` writes."""
        return key, value

    def write(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole caches of a layer with the new keys and values in their slots."""
        update = torch.ops.qfuse.kv_update
        self.keys[layer] = update(self.keys[layer], key, self.position)
        self.values[layer] = update(self.values[layer], value, self.position)
        return self.keys[layer], self.values[layer]


_CACHES: ContextVar[_Caches] = ContextVar("caches of the step that is traced")
"""Not every decoder layer of transformers hands on arguments that it does not know."""


class Step(nn.Module):
    """One step of generation: T tokens at consecutive positions; returns logits and caches."""

    def __init__(self, model: PreTrained, logits: str) -> None:
        super().__init__()
        self.model = model
        self._keep = 1 if logits == "last" else 0

    def forward(
        self,
        input_ids: torch.Tensor,
        position: torch.Tensor,
        key_caches: list[torch.Tensor],
        value_caches: list[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        caches = _Caches(key_caches, value_caches, position)
        token = _CACHES.set(caches)
        try:
            out = self.model(
                input_ids=input_ids,
                position_ids=position[None],
                past_key_values=caches,
                use_cache=True,
                logits_to_keep=self._keep,
            )
        finally:
            _CACHES.reset(token)
        return out.logits, caches.keys, caches.values


@dataclass(frozen=True)
class StepGraph:
    """The simplified FX graph of a `Step`: what its arguments (by node name) and results are."""

    graph: fx.Graph
    arguments: dict[str, Argument]
    results: tuple[Argument, ...]


def trace_step(model: PreTrained, max_len: int, logits: str) -> StepGraph:
    """torch.export of `Step` over a meta model, for any number of tokens from 1 to max_len."""
    config = model.config
    tokens = min(7, max_len)  # any number but 1, which export would take for a constant
    key_shape, value_shape = cache_shapes(config, max_len)
    layers = config.num_hidden_layers
    expand_latents(model, attention)
    select_by_operator(model)

    def caches(shape: tuple[int, ...]) -> list[torch.Tensor]:
        return [torch.empty(shape, dtype=model.dtype, device="meta") for _ in range(layers)]

    example = (
        torch.zeros(1, tokens, dtype=torch.int64, device="meta"),
        torch.zeros(tokens, dtype=torch.int64, device="meta"),
        caches(key_shape),
        caches(value_shape),
    )
    shapes = None
    if max_len > 1:
        dim = torch.export.Dim("T", min=1, max=max_len)
        shapes = ({1: dim}, {0: dim}, [None] * layers, [None] * layers)
    try:
        with torch.no_grad():
            program = export(Step(model, logits), example, shapes)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise QfuseError(
            f"torch.export cannot trace this {config.model_type} model: {reason[0]}"
        ) from error
    functionalize(program.graph)
    simplify(program.graph)
    arguments, results = _describe(program, layers)
    _merge_tied(program.graph, arguments, model)
    for node in unused(program.graph):
        if arguments[node.name].kind == "parameter":
            program.graph.erase_node(node)
    return StepGraph(program.graph, arguments, results)


def _merge_tied(graph: fx.Graph, arguments: Mapping[str, Argument], model: nn.Module) -> None:
    """Read a parameter of several names (tied embeddings) through its first name only."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    same = {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    nodes = {arguments[n.name].name: n for n in graph.nodes if n.op == "placeholder"}
    for name, node in nodes.items():
        if same.get(name, name) != name:
            node.replace_all_uses_with(nodes[same[name]])


def _describe(
    program: torch.export.ExportedProgram, layers: int
) -> tuple[dict[str, Argument], tuple[Argument, ...]]:
    """Kind and name of each argument (by node name) and result of an exported `Step`."""
    caches = [
        Argument("cache", f"{which}_cache.{layer}")
        for which in ("key", "value")
        for layer in range(layers)
    ]
    inputs = [Argument("input", "input_ids"), Argument("input", "position"), *caches]
    user = iter(inputs)
    arguments = {
        spec.arg.name: (
            next(user)
            if spec.target is None
            else Argument("parameter", spec.target.removeprefix(PREFIX))
        )
        for spec in program.graph_signature.input_specs
    }
    return arguments, (Argument("output", "logits"), *caches)


def cache_shapes(config: Any, max_len: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of each key and each value cache: [1, heads, slots, width of a head]."""
    if getattr(config, "kv_lora_rank", None):
        heads = config.num_attention_heads
        return (
            (1, heads, max_len, config.qk_nope_head_dim + config.qk_rope_head_dim),
            (1, heads, max_len, config.v_head_dim),
        )
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    shape = (1, heads, max_len, width)
    return shape, shape
