"""What a user calls: generation, its errors, reports."""

import io

import pytest
import torch
from fakes import main, program_of
from models import VOCABULARY, WIDTH, expected_logits, expected_tokens, language_model
from rich.console import Console

from qfuse.compiler.runtime.executable import Executable
from qfuse.compiler.runtime.report import Report, size_text
from qfuse.dialects.errors import QfuseError


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def exe(table: torch.Tensor) -> Executable:
    program = program_of(language_model(cache=16), {"table": table})
    program.info = {"vocab_size": VOCABULARY, "max_len": 16, "eos_token_ids": [], "config": {}}
    return Executable(program)


def test_greedy_generation(exe: Executable, table: torch.Tensor) -> None:
    for prompt in ([1], [1, 2, 3], [12] * 9):
        assert exe.generate(prompt, 6) == expected_tokens(table, prompt, 6)
    assert exe.generate(torch.tensor([[1, 2]]), 3) == expected_tokens(table, [1, 2], 3)
    assert exe.generate([1], 0) == []
    assert exe.max_len == 16


def test_generation_ends_after_an_end_token(exe: Executable, table: torch.Tensor) -> None:
    tokens = expected_tokens(table, [1, 2, 3], 6)
    at = tokens.index(tokens[2])
    assert exe.generate([1, 2, 3], 6, eos=tokens[2]) == tokens[: at + 1]
    exe.program.info["eos_token_ids"] = [tokens[2]]
    assert exe.generate([1, 2, 3], 6) == tokens[: at + 1]
    assert exe.generate([1, 2, 3], 6, eos=()) == tokens


def test_logits(exe: Executable, table: torch.Tensor) -> None:
    for prompt in ([3, 1, 4], [1, 5]):
        torch.testing.assert_close(exe.logits(prompt), expected_logits(table, prompt))


WRONG_PROMPTS = {
    "empty": ([], 1, "the prompt is empty"),
    "fractions": ([0.5], 1, "tokens are whole numbers"),
    "words": (["a"], 1, "not whole numbers"),
    "negative": ([-1], 1, "token -1 is not in the vocabulary; tokens are 0 to 12"),
    "too large": ([13], 1, "token 13 is not in the vocabulary"),
    "two prompts": ([[1], [2]], 1, r"shape \[2, 1\]; one prompt is \[T\] or \[1, T\]"),
    "too long": ([1] * 17, 1, "the prompt has 17 tokens, but the caches hold 16"),
    "too many": ([1] * 10, 8, "10 tokens and 8 new ones need 17 .* at most 7 new tokens"),
    "less than none": ([1], -1, "cannot be negative"),
}


@pytest.mark.parametrize("case", WRONG_PROMPTS)
def test_wrong_prompts_are_one_line(exe: Executable, case: str) -> None:
    prompt, count, message = WRONG_PROMPTS[case]
    with pytest.raises(QfuseError, match=message) as caught:
        exe.generate(prompt, count)
    assert "\n" not in str(caught.value)


def test_caches_are_used_to_the_last_place(exe: Executable, table: torch.Tensor) -> None:
    assert exe.generate([1] * 16, 1) == expected_tokens(table, [1] * 16, 1)
    assert exe.generate([1] * 10, 7) == expected_tokens(table, [1] * 10, 7)


def test_a_program_that_is_no_language_model() -> None:
    x = "!torch.vtensor<[?],f32>"
    exe = Executable(
        program_of(
            main("x: ?xf32 input", "y: ?xf32 output", f"%y = torch.aten.neg %x : {x} -> {x}")
        )
    )
    assert exe(torch.ones(3))[0].equal(-torch.ones(3))
    assert exe.max_len is None
    with pytest.raises(QfuseError, match="no language model; call it with its inputs: x"):
        exe.generate([1], 1)


def test_inspection_is_plain_data(exe: Executable) -> None:
    data = exe.inspect()
    assert data["model"] == {"vocab_size": VOCABULARY, "max_len": 16, "eos_token_ids": []}
    assert data["inputs"] == {"input_ids": "int64[1, ?]", "position": "int64[?]"}
    assert data["caches"]["key_cache.0"] == f"float32[1, 1, 16, {WIDTH}]"
    assert data["outputs"] == ["logits"]
    assert data["steps"]["qfuse.kv_update"] == 2
    assert data["sizes"]["weight_bytes"] == VOCABULARY * WIDTH * 4


SAVES = {"launches": 2, "bytes": 8, "bytes_per_row": 1024}
REPORT = {
    "patterns": ["fuse-gate-up", "fuse-epilogue", "never"],
    "remarks": [
        {"outcome": "fired", "pattern": "fuse-gate-up", "saves": SAVES},
        {"outcome": "fired", "pattern": "fuse-gate-up", "saves": SAVES | {"launches": 1}},
        {"outcome": "refused", "pattern": "fuse-epilogue", "cause": "two readers", "cure": "copy"},
        {"outcome": "refused", "pattern": "fuse-epilogue", "cause": "two readers", "cure": "copy"},
        {"outcome": "refused", "pattern": "fuse-epilogue", "cause": "[bold]"},
    ],
    "before": {"launches": 90, "bytes": 3 << 20},
    "after": {"launches": 40, "bytes": 1536},
}


def test_report_counts_patterns_and_reasons(exe: Executable) -> None:
    exe.program.report = REPORT
    report = exe.report()
    assert [(p.name, p.fired, p.refused) for p in report.patterns] == [
        ("fuse-gate-up", 2, 0),
        ("fuse-epilogue", 0, 3),
        ("never", 0, 0),
    ]
    assert report.patterns[1].reasons == (("two readers; copy", 2), ("[bold]", 1))
    console = Console(file=io.StringIO(), width=120)
    console.print(report)
    rendered = console.file.getvalue()
    for text in (str(report), rendered):
        for part in (
            "3 launches, 16 B, 2048 B a row",
            "fuse-gate-up",
            "2 x two readers; copy",
            "[bold]",
            "90",
            "40",
            "3.0 MiB",
        ):
            assert part in text
    data = report.to_json()
    assert data["after"] == {"launches": 40, "bytes": 1536}
    assert data["matches"] == REPORT["remarks"]
    saves = {"launches": 3, "bytes": 16, "bytes_per_row": 2048}
    assert [p["saves"] for p in data["patterns"].values()] == [saves, None, None]
    assert str(Report.from_json({})) == ""


def test_sizes_in_words() -> None:
    assert [size_text(n) for n in (0, 1023, 1536, 5 << 30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
    ]
