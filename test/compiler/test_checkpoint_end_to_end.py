"""A checkpoint from disk to generated tokens, for every dense architecture."""

import pytest
import torch
from imported_once import file_once

from qfuse.compiler import compile, load
from qfuse.compiler.frontend import baseline
from qfuse.compiler.frontend.checkpoint import Checkpoint
from qfuse.dialects.errors import QfuseError

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "qwen2", "mistral"])
def test_logits_follow_the_reference(checkpoints, architecture):
    """All positions of a prefill, against transformers in f32 with quantized activations."""
    directory = checkpoints(architecture=architecture)
    exe = compile(directory, max_len=32, logits="all")
    reference = baseline.reference_model(Checkpoint(directory), simulate_activations=True)
    expected = baseline.logits(reference, PROMPT)
    got = exe.logits(PROMPT)[0].float()
    # bf16 between operations (2^-9 relative each) and codes of activations that a rounding moves
    # to a neighbour (2^-4 relative, some percent of them), over two layers.
    error = torch.linalg.norm(got - expected) / torch.linalg.norm(expected)
    assert error < 0.02
    assert torch.equal(got.argmax(-1), expected.argmax(-1))


def test_decode_agrees_with_prefill(checkpoints):
    """Token by token through the caches, or all at once: the same up to the order of sums."""
    directory = checkpoints()
    at_once = compile(directory, max_len=32, logits="all").logits(PROMPT)[0].float()
    session = compile(directory, max_len=32).session()
    steps = [
        session(torch.tensor([[token]]), torch.tensor([i]))[0][0, 0].float()
        for i, token in enumerate(PROMPT)
    ]
    error = torch.linalg.norm(torch.stack(steps) - at_once) / torch.linalg.norm(at_once)
    assert error < 0.02  # M = 1 sums in another order than M = 8; see above for what that moves


def test_saved_program_generates_the_same(checkpoints, tmp_path):
    exe = compile(checkpoints(), max_len=32)
    exe.save(tmp_path / "model.qfuse")
    loaded = load(tmp_path / "model.qfuse")
    assert loaded.generate(PROMPT, 8, eos=()) == exe.generate(PROMPT, 8, eos=())
    assert loaded.report() == exe.report()


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2"])
def test_unquantized_checkpoint(checkpoints, architecture):
    """The fusions of a quantized one, of products with biases too, and not another bit."""
    directory = checkpoints(architecture=architecture, quantized=False)
    model = file_once(directory, max_len=32, logits="last")
    exe, plain = model.compile(), model.compile("all")
    assert exe.generate(PROMPT, 8, eos=()) == plain.generate(PROMPT, 8, eos=())
    assert torch.equal(exe.logits(PROMPT), plain.logits(PROMPT))
    patterns = {p.name: p for p in exe.report().patterns}
    linear = patterns["plain-product"]
    assert (linear.fired, linear.refused) == (15, 0)  # seven layers in each of two, and lm_head
    for fusion in ("gate-up", "siblings"):
        assert (patterns[fusion].fired, patterns[fusion].refused) == (2, 0)


def test_tied_head_has_one_table(checkpoints, tmp_path):
    """The embedding needs its rows, so the head reads them, too, on torch; all else is packed."""
    exe = compile(checkpoints(quantized=False, tied=True), max_len=32)
    linear = {p.name: p for p in exe.report().patterns}["plain-product"]
    assert (linear.fired, linear.refused) == (14, 1)
    assert "which packed for a kernel would be kept twice" in linear.reasons[0][0]
    plan = exe.program.plan
    (table,) = [p.value for p in plan.parameters if "embed_tokens" in p.name]
    assert exe.program.constants[table].shape == (256, 128)
    assert not any((table,) in prepare.parts for prepare in plan.prepares)
    exe.save(tmp_path / "model.qfuse")
    assert load(tmp_path / "model.qfuse").generate(PROMPT, 8) == exe.generate(PROMPT, 8)


def test_unquantized_weights_are_kept_once(checkpoints):
    program = compile(checkpoints(quantized=False), max_len=32).program
    sizes = [t.nbytes for t in program.constants.values() if t.dim() == 1 and t.nbytes > 1024]
    of_parameters = {p.name for p in program.plan.parameters if p.value in program.constants}
    assert not [name for name in of_parameters if name.endswith("proj.weight")]
    # q, k and v; o; gate and up; down, of two layers, padded to 64 rows and 128 columns; the head
    layer = [256 * 128, 128 * 128, 2 * 256 * 128, 128 * 256]
    assert sorted(sizes) == sorted(2 * n for n in [*layer, *layer, 256 * 128])


def test_identical_layers_share_kernels(checkpoints):
    two = compile(checkpoints(), max_len=32)
    four = compile(checkpoints(layers=4), max_len=32)
    assert set(two.program.kernels) == set(four.program.kernels)


def test_threads_do_not_change_results(checkpoints):
    directory, threads = checkpoints(), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = compile(directory, max_len=32).logits(PROMPT)
        torch.set_num_threads(1)
        one = compile(directory, max_len=32).logits(PROMPT)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


@pytest.mark.parametrize("level", ["generic"])
def test_forced_level(checkpoints, monkeypatch, level):
    """The portable kernels give what the best ones give, up to the order of sums."""
    best = compile(checkpoints(), max_len=32).logits(PROMPT).float()
    monkeypatch.setenv("QFUSE_CPU_LEVEL", level)
    exe = compile(checkpoints(), max_len=32)
    assert {k.level for k in exe.program.kernels.values()} == {level}
    portable = exe.logits(PROMPT).float()
    assert torch.linalg.norm(best - portable) / torch.linalg.norm(best) < 0.02


def test_unknown_level(checkpoints, monkeypatch):
    monkeypatch.setenv("QFUSE_CPU_LEVEL", "avx1024")
    with pytest.raises(QfuseError, match="avx1024"):
        compile(checkpoints(), max_len=32)
