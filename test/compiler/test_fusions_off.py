"""Models with each fusion off, and with all: the same bits, and what remarks say they save."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf_models
import pytest
import torch
from imported_once import ImportedOnce, file_once

from qfuse.compiler.options import FUSIONS
from qfuse.compiler.runtime.executable import Executable
from qfuse.compiler.runtime.report import Savings

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


PATTERNS = {
    "shared-expert": ["shared-expert"],
    "gate-up": ["gate-up"],
    "qkv": ["siblings"],
    "rope": ["rope"],
    "epilogue": ["epilogue-residual-binary"],
    "combine": ["product-combine"],
    "norm-quantize": ["norm-quantize"],
    "act-quantize": ["product-quantize"],
}
"""What fires in models, by the fusion that it belongs to."""

DENSE = ["gate-up", "qkv", "rope", "epilogue", "norm-quantize", "act-quantize"]
MODELS = {
    "qwen3": DENSE,
    "qwen3_moe": [*DENSE, "combine"],
    "mixtral": [*DENSE, "combine"],
    "deepseek_v3": list(FUSIONS),
    "gguf": DENSE,
}
"""The fusions that fire in each."""


@pytest.fixture(scope="module")
def models(
    checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], ImportedOnce]:
    found: dict[str, ImportedOnce] = {}

    def get(name: str) -> ImportedOnce:
        if name not in found:
            if name == "gguf":
                path = tmp_path_factory.mktemp("gguf") / "model.gguf"
                model = gguf_models.transformers_model("qwen3", num_hidden_layers=1)
                gguf_models.write(path, model, gguf_models.q4_k_m)
            else:
                # two layers meet in qwen3; DeepSeek's first one is dense
                layers = 2 if name in ("qwen3", "deepseek_v3") else 1
                path = checkpoints(architecture=name, layers=layers)
            found[name] = file_once(path, max_len=16)
        return found[name]

    return get


CASES = [(model, fusion) for model, fusions in MODELS.items() for fusion in (*fusions, "all")]


@pytest.mark.parametrize(("name", "fusion"), CASES)
def test_the_same_bits(models: Callable[[str], ImportedOnce], name: str, fusion: str) -> None:
    fused, without = models(name).compile(), models(name).compile(fusion)
    for which in MODELS[name] if fusion == "all" else [fusion]:
        for pattern in PATTERNS[which]:
            assert (fires(fused, pattern), fires(without, pattern)) == (True, False)
    for count in (1, 4, 8):
        assert torch.equal(fused.logits(PROMPT[:count]), without.logits(PROMPT[:count]))
    assert fused.generate(PROMPT, 8, eos=()) == without.generate(PROMPT, 8, eos=())


def fires(exe: Executable, pattern: str) -> bool:
    return any(p.name == pattern and p.fired for p in exe.report().patterns)


@pytest.mark.parametrize("name", MODELS)
def test_savings_add_up(models: Callable[[str], ImportedOnce], name: str) -> None:
    """The sum over all remarks is what a call has less, to the byte, of launches and of bytes.

    Copies are left out: whether strides fit a kernel is known only when a program runs.
    """
    unfused = models(name).compile("all")
    for disable in ((), *((fusion,) for fusion in MODELS[name])):
        exe = models(name).compile(*disable)
        matches = exe.report().matches
        assert all(m["saves"] for m in fusions_of(matches) if m["outcome"] == "fired")
        saved = sum((Savings(**m["saves"]) for m in matches if m["saves"]), Savings())
        assert saved == sum((p.saves for p in exe.report().patterns if p.saves), Savings())
        for rows in (1, 4):
            before, after = moved(unfused, rows), moved(exe, rows)
            assert (saved.launches, saved.of_rows(rows)) == (
                before[0] - after[0],
                before[1] - after[1],
            )


def fusions_of(matches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    names = {pattern for patterns in PATTERNS.values() for pattern in patterns}
    return [match for match in matches if match["pattern"] in names]


def moved(exe: Executable, rows: int) -> tuple[int, int]:
    """Launches and bytes of the first call with so many tokens, copies apart."""
    tokens = torch.zeros(1, rows, dtype=torch.long)
    profile = exe.session().profile(tokens, torch.arange(rows))
    launches, size = profile.by_kind.get("copy", (0, 0))
    return profile.launches - launches, profile.bytes - size
