"""Which backend multiplies what, and why: the rules of dispatch, in the order in which they count.

Of the rules for a number of rows, the first whose conditions all hold decides.  `RULES.md` beside
this file is made of this table (`rules_text`), and a test holds them equal.
"""

from dataclasses import dataclass

from qfuse.compiler.dispatch.conditions import CONDITIONS

KERNEL, LIBRARY = "kernel", "library"
BACKENDS = (KERNEL, LIBRARY)


@dataclass(frozen=True)
class Rule:
    """Rows first_m to last_m (None: any larger number) of a product that fits go to `backend`.

    One row is that of one token, of which experts have several: those count as one here, and a
    library that may multiply from two rows on does so from two tokens on.

    `call` is what of the library, an entry of `runtime/library.py`; `apart`: it leaves the
    epilogue to a kernel of ours that follows.  `cost`: where library products are not asked for,
    only if the call is measured (`qfuse tune`), or else estimated, to be faster; with `apart`, only
    then in any case.  `measured`: there is no estimate, and asking for it is not enough.
    """

    name: str
    backend: str
    reason: str
    conditions: tuple[str, ...] = ()
    call: str = ""
    first_m: int = 1
    last_m: int | None = None
    cost: bool = False
    apart: bool = False
    measured: bool = False

    def least(self, single: int) -> int:
        """The first number of rows, of which a token has `single`."""
        return self.first_m if self.first_m == 1 else max(self.first_m, single + 1)

    def most(self, single: int) -> int | None:
        """The last one."""
        return single if self.last_m == 1 else self.last_m

    def __post_init__(self) -> None:
        unknown = [name for name in self.conditions if name not in CONDITIONS]
        assert not unknown, f"rule {self.name}: no condition {unknown}"


_TWO = 2
"""Rows from which on a library may multiply: one row is a matrix by a vector."""

RULES: tuple[Rule, ...] = (
    Rule(
        "single-row",
        KERNEL,
        "one row is a matrix by a vector, bound by reading the weight: a library's tiles would be "
        "empty but for it",
        ("on-a-gpu",),
        last_m=1,
    ),
    Rule(
        "fused-dequantize",
        KERNEL,
        "the dequantize is fused: a library would need the weight expanded in memory first",
        ("dequantizes",),
    ),
    Rule(
        "plain",
        LIBRARY,
        "an unquantized product, with an epilogue that the library has",
        ("enabled", "on-a-gpu", "dense", "unquantized", "epilogue-of-mm", "scale-of-mm"),
        call="mm",
        first_m=_TWO,
        cost=True,
    ),
    Rule(
        "plain-on-the-cpu",
        LIBRARY,
        "an unquantized product that oneDNN is faster at on this CPU",
        ("enabled", "on-the-cpu", "dense", "unquantized", "epilogue-is-nothing"),
        call="mm",
        first_m=_TWO,
        cost=True,
        measured=True,
    ),
    Rule(
        "fp8-blocks",
        LIBRARY,
        "FP8 in blocks, which cublasLt has here",
        (
            *("enabled", "hopper", "dense", "fp8-in-blocks", "scales-as-read", "half-result"),
            *("multiples-of-16", "epilogue-of-scaled-mm", "scale-of-weight"),
        ),
        call="scaled_mm_blocks",
        first_m=_TWO,
        cost=True,
    ),
    Rule(
        "fp8-rows",
        LIBRARY,
        "FP8 with a scale for each row of x and of w",
        (
            *("enabled", "fp8-hardware", "dense", "fp8-per-row", "bf16-result"),
            *("multiples-of-16", "epilogue-of-scaled-mm", "scale-of-weight"),
        ),
        call="scaled_mm_rows",
        first_m=_TWO,
        cost=True,
    ),
    Rule(
        "int8",
        LIBRARY,
        "whole products of the library; scaled by a kernel of their own",
        (
            *("enabled", "on-cuda", "dense", "int8-per-row", "half-result"),
            *("multiples-of-4", "epilogue-is-nothing"),
        ),
        call="int_mm",
        first_m=17,  # torch._int_mm takes more than 16 rows
        cost=True,
    ),
    Rule(
        "plain-experts",
        LIBRARY,
        "unquantized weights of experts",
        (
            *("enabled", "on-a-gpu", "from-sm-90", "experts", "half", "sorted-rows"),
            *("multiples-of-8", "epilogue-is-nothing"),
        ),
        call="grouped_mm",
        first_m=_TWO,
        cost=True,
    ),
    Rule(
        "fp8-rows-of-experts",
        LIBRARY,
        "FP8 weights of experts with a scale for each row",
        (
            *("enabled", "hopper", "experts", "fp8-per-row", "bf16-result", "sorted-rows"),
            *("multiples-of-16", "epilogue-is-nothing"),
        ),
        call="scaled_grouped_mm",
        first_m=_TWO,
        cost=True,
    ),
    Rule(
        "plain-apart",
        LIBRARY,
        "an unquantized product, its epilogue in a kernel that follows",
        ("enabled", "on-a-gpu", "dense", "one-plain-type", "rounds-first", "one-result"),
        call="mm",
        first_m=_TWO,
        cost=True,
        apart=True,
    ),
    Rule(
        "fp8-blocks-apart",
        LIBRARY,
        "FP8 in blocks, its epilogue in a kernel that follows",
        (
            *("enabled", "hopper", "dense", "fp8-in-blocks", "scales-as-read"),
            *("multiples-of-16", "rounds-first", "one-result"),
        ),
        call="scaled_mm_blocks",
        first_m=_TWO,
        cost=True,
        apart=True,
    ),
    Rule(
        "fp8-rows-apart",
        LIBRARY,
        "FP8 with a scale for each row, its epilogue in a kernel that follows",
        (
            *("enabled", "fp8-hardware", "dense", "fp8-per-row"),
            *("multiples-of-16", "rounds-first", "one-result"),
        ),
        call="scaled_mm_rows",
        first_m=_TWO,
        cost=True,
        apart=True,
    ),
    Rule("own-kernel", KERNEL, "our kernel computes it together with its epilogue"),
)
"""The table.  What holds by the types is no condition: K is static, nothing but the epilogue reads
an accumulator, a weight is [N, K] and so the transposed right operand that FP8 needs, a bias is a
vector, and leading dimensions of x are rows, which no weight repeats.  A scale of a whole tensor is
as many equal ones of rows (`frontend/fp8.py`)."""


def rules_text() -> str:
    """The table as Markdown."""
    lines = [
        "# Rules of dispatch",
        "",
        "Made from `rules.py` and `conditions.py`; the first rule for a number of rows M whose",
        "conditions all hold decides. Rules marked `by cost` count where library products are",
        "asked for (`blas=on`), or where their call is faster: as `qfuse tune` measured it on this",
        "GPU (`QFUSE_TILE_TABLE`), else by an estimate (`cost.py`). Where a kernel for the",
        "epilogue follows a call, both together have to be faster than ours. M = 1 is one token:",
        "with experts all of its rows, and M >= 2 begins with the second token.",
        "",
    ]
    for number, rule in enumerate(RULES, 1):
        rows = f"M >= {rule.first_m}" if rule.last_m is None else f"M = {rule.first_m}"
        if (rule.first_m, rule.last_m) == (1, None):
            rows = "any M"
        to = f"library call `{rule.call}`" if rule.call else "our kernel"
        to += " and a kernel for the epilogue" if rule.apart else ""
        by = ", if measured faster" if rule.measured else ", by cost" if rule.cost else ""
        lines += [f"{number}. **{rule.name}**, {rows}: {to}{by}.",
                  f"   {rule.reason[0].upper()}{rule.reason[1:]}."]  # fmt: skip
        lines += [f"   - {CONDITIONS[name].wanted}" for name in rule.conditions]
    return "\n".join(lines) + "\n"
