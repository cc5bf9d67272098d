"""Caches: written in place exactly when nobody can see the difference."""

import pytest
import torch
from fakes import main, program_of
from models import VOCABULARY, WIDTH, expected_logits, language_model

from qfuse.compiler import torch_ops
from qfuse.compiler.runtime.donation import donated_updates
from qfuse.compiler.runtime.program import Program
from qfuse.compiler.runtime.session import Session
from qfuse.dialects.errors import QfuseError

KV = "!torch.vtensor<[1,1,6,2],f32>"
NEW = "!torch.vtensor<[1,1,?,2],f32>"


def update(result: str, cache: str, new: str = "new") -> str:
    return (
        f'%{result} = torch.operator "torch.qfuse.kv_update"(%{cache}, %{new}, %p) : '
        f"({KV}, {NEW}, !torch.vtensor<[?],si64>) -> {KV}\n"
    )


def program(results: str, body: str) -> Program:
    """A program with caches a and b, and inputs new and p; results are `name=value kind`."""
    pairs = [line.split("=") for line in results.splitlines()]
    lines = [f"{pair[1].split()[0]}: 1x1x6x2xf32 {pair[1].split()[1]}" for pair in pairs]
    text = main(
        "a: 1x1x6x2xf32 cache\nb: 1x1x6x2xf32 cache\nnew: 1x1x?x2xf32 input\np: ?xsi64 input",
        "\n".join(lines),
        "%one = torch.constant.int 1\n" + body,
        [name for name, _ in pairs],
    )
    return program_of(text)


# What is returned, the steps, and how many updates may happen in place.
CASES = {
    "the usual": ("a=u cache", update("u", "a"), 1),
    "both caches": ("a=u cache\nb=v cache", update("u", "a") + update("v", "b"), 2),
    "twice in a row": ("a=v cache", update("u", "a") + update("v", "u"), 2),
    "the old one is an output": ("a=u cache\nold=a output", update("u", "a"), 0),
    "the new one is an output": ("a=u cache\nnew=u output", update("u", "a"), 1),
    "the cache is not returned": ("y=u output", update("u", "a"), 0),
    "the cache is returned unchanged": ("a=a cache\ny=u output", update("u", "a"), 0),
    "the caches change places": ("a=v cache\nb=u cache", update("u", "a") + update("v", "b"), 2),
    "one cache replaces both": ("a=u cache\nb=u cache", update("u", "a"), 1),
    "two updates of one cache": (
        "a=v cache\ny=u output",
        update("u", "a") + update("v", "a"),
        1,
    ),
    "the first of two is kept": (
        "a=u cache\ny=v output",
        update("u", "a") + update("v", "u"),
        1,
    ),
    "a view of the old one is read later": (
        "a=u cache\ny=w output",
        f"""%two = torch.constant.int 2
        %t = torch.aten.transpose.int %a, %one, %two : {KV}, !torch.int, !torch.int
          -> !torch.vtensor<[1,6,1,2],f32>
        {update("u", "a")}
        %s = torch.aten.transpose.int %t, %one, %two : !torch.vtensor<[1,6,1,2],f32>,
          !torch.int, !torch.int -> {KV}
        %w = torch.aten.add.Tensor %s, %u, %one : {KV}, {KV}, !torch.int -> {KV}
        """,
        0,
    ),
    "a view of the old one is read before": (
        "a=u cache\ny=w output",
        f"""%w = torch.aten.neg %a : {KV} -> {KV}
        {update("u", "a")}""",
        0,  # any operator might return a view, as far as donation knows
    ),
    "what is written is a part of the cache": (
        "a=u cache",
        f"""%two = torch.constant.int 2
        %three = torch.constant.int 3
        %zero = torch.constant.int 0
        %part = torch.aten.slice.Tensor %a, %two, %zero, %three, %one
          : {KV}, !torch.int, !torch.int, !torch.int, !torch.int -> {NEW}
        {update("u", "a", "part")}""",
        0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_updates_in_place_are_invisible(case: str) -> None:
    results, body, in_place = CASES[case]
    made = program(results, body)
    assert len(donated_updates(made.plan)) == in_place
    fast, slow = Session(made, poison=True), Session(made)
    slow._donated = frozenset()
    generator = torch.Generator().manual_seed(1)
    for name in ("a", "b"):
        start = torch.randn(1, 1, 6, 2, generator=generator)
        fast.caches[name].copy_(start)
        slow.caches[name].copy_(start)
    for first in (0, 2, 1, 3):
        new = torch.randn(1, 1, 3, 2, generator=generator)
        position = torch.arange(first, first + 3)
        for found, expected in zip(fast(new, position), slow(new, position), strict=True):
            assert found.equal(expected)
        for name in ("a", "b"):
            assert fast.caches[name].equal(slow.caches[name])


def test_without_donation_the_functional_semantics_hold() -> None:
    """The reference of the test above, against torch itself."""
    session = Session(program("a=u cache\nold=a output", update("u", "a")))
    session.caches["a"].fill_(7)
    new, position = torch.randn(1, 1, 3, 2), torch.arange(3)
    for _ in range(2):
        before = session.caches["a"].clone()
        (old,) = session(new, position)
        assert old.equal(before)
        assert session.caches["a"].equal(torch_ops.kv_update(before, new, position))


@pytest.mark.parametrize("keys_read_after", [False, True])
def test_prefill_and_decode_from_one_plan(keys_read_after: bool) -> None:
    table = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))
    session = Session(
        program_of(language_model(keys_read_after=keys_read_after), {"table": table}), poison=True
    )
    for _ in range(2):
        session.reset()
        ids = [3, 1, 4, 1, 5]
        session(torch.tensor([ids[:3]]), torch.arange(3))
        for i in (3, 4):
            logits = session(torch.tensor([[ids[i]]]), torch.tensor([i]))[0]
        torch.testing.assert_close(logits, expected_logits(table, ids))
    used = session.profile(torch.tensor([[2]]), torch.tensor([5])).by_name["qfuse.attention"][1]
    assert used == 2 * 4 * WIDTH + 2 * 4 * WIDTH * 6  # six places of sixteen


def test_a_position_beyond_the_cache_is_one_line() -> None:
    table = torch.randn(VOCABULARY, WIDTH)
    session = Session(program_of(language_model(), {"table": table}))
    for _ in range(2):
        with pytest.raises(QfuseError, match="failed") as caught:
            session(torch.tensor([[2]]), torch.tensor([16]))
        assert "\n" not in str(caught.value)
        session(torch.tensor([[2]]), torch.tensor([15]))


def test_length_and_batch_of_open_caches() -> None:
    text = main(
        "a: ?x1x?x2xf32 cache\nnew: ?x1x?x2xf32 input\np: ?xsi64 input",
        "u: ?x1x?x2xf32 cache",
        """%u = torch.operator "torch.qfuse.kv_update"(%a, %new, %p)
          : (!torch.vtensor<[?,1,?,2],f32>, !torch.vtensor<[?,1,?,2],f32>,
             !torch.vtensor<[?],si64>) -> !torch.vtensor<[?,1,?,2],f32>""",
        ["a"],
    )
    made = program_of(text)
    session = Session(made, cache_len=9, batch=3)
    assert session.caches["a"].shape == (3, 1, 9, 2)
    session(torch.ones(3, 1, 2, 2), torch.arange(2))
    assert session.caches["a"].sum() == 12
    session.reset()
    assert not session.caches["a"].any()
    with pytest.raises(QfuseError, match="say how long"):
        Session(made)
    with pytest.raises(QfuseError, match="a length of 9 needs the model compiled for it"):
        Session(program("a=u cache", update("u", "a")), cache_len=9)
