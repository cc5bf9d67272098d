"""What `Verification` compares around operations that the reference cannot run, and what it skips.

Each comes with its reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
from programs import Program
from verification_cases import gated_mlp, verify

from qfuse.compiler.passes.base import Pass
from qfuse.compiler.pipeline import Stage
from qfuse.compiler.verification import NotEquivalent
from qfuse.dialects.bindings import ir
from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import DYNAMIC


def opaque(name: str, x: str, result: str) -> str:
    return f'%{result} = torch.operator "torch.test.{name}"(%{x}) : (!t) -> !t'


def with_torch(*body: str, returns: str) -> str:
    lines = "\n".join(body)
    return f"""
!t = !torch.vtensor<[?,8],f32>
!b = tensor<?x8xf32>
func.func @f(%a: !t) -> !t {{
{lines}
return %{returns} : !t
}}"""


AROUND = with_torch(
    opaque("first", "a", "x"),
    "%b = torch_c.to_builtin_tensor %x : !t -> !b",
    '%c = "qfuse.relu"(%b) : (!b) -> !b',
    "%y = torch_c.from_builtin_tensor %c : !b -> !t",
    opaque("second", "y", "z"),
    returns="z",
)


@dataclass(frozen=True)
class Edit(Pass):
    """Does to every operation of a name what `change` says."""

    change: Callable[[ir.Operation], None]
    of: str = "qfuse.relu"
    name: ClassVar[str] = "edit"

    def run(self, module: ir.Operation) -> None:
        for function in module.regions[0].blocks[0].operations:
            for op in list(function.operation.regions[0].blocks[0].operations):
                if op.operation.name == self.of:
                    self.change(op.operation)

    @property
    def stages(self) -> list[Stage]:
        return [Stage(self.name, self)]


def forward(op: ir.Operation) -> None:
    op.results[0].replace_all_uses_with(op.operands[0])
    op.erase()


def test_what_torch_reads_is_compared() -> None:
    """The function's result is what torch yields, which cannot be run; what it reads can."""
    with pytest.raises(NotEquivalent, match=r"operand 0 of torch\.test\.second at loc\(") as error:
        verify(AROUND, Edit(forward).stages)
    assert "made by torch.test.first" in str(error.value)


def test_what_depends_on_a_replaced_operation_is_skipped_with_a_reason() -> None:
    verification = verify(AROUND, Edit(forward, "torch.operator").stages)
    assert list(verification.skipped) == [
        "edit of @f is not verified: the reference does not execute torch.test.second, on which "
        "result 0 depends"
    ]


def test_equal_operations_of_torch_yield_equal_values() -> None:
    """As cse may merge them."""
    text = with_torch(
        opaque("one", "a", "x"),
        opaque("one", "a", "y"),
        "%b = torch_c.to_builtin_tensor %x : !t -> !b",
        "%c = torch_c.to_builtin_tensor %y : !t -> !b",
        '%d = "qfuse.add"(%b, %c) : (!b, !b) -> !b',
        "%z = torch_c.from_builtin_tensor %d : !b -> !t",
        returns="z",
    )

    def read_the_first_twice(op: ir.Operation) -> None:
        op.operands[1] = op.operands[0]

    verification = verify(text, Edit(read_the_first_twice, "qfuse.add").stages)
    assert verification.compared and not verification.skipped


def test_a_function_that_cannot_run_is_skipped_with_a_reason() -> None:
    text = """
func.func @f(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = arith.negf %a : tensor<4xf32>
  return %0 : tensor<4xf32>
}"""
    (line,) = verify(text, Edit(forward).stages).skipped
    assert "edit of @f is not verified: the reference does not execute arith.negf, at loc(" in line


def test_a_program_that_fits_no_more_fails() -> None:
    """Shapes known at run time only, so that the verifier cannot see it."""
    p = Program()
    y = p.add(p.input(-1, 8), p.input(4, 8), Shaped((DYNAMIC, 8), "bf16"))
    (line, *_) = verify(p.text([y]), Edit(forward).stages).skipped
    assert "do not fit" in line


def test_kernels_of_a_gpu_are_not_run() -> None:
    p = Program()
    name = "qfuse-convert-to-triton"
    verification = verify(p.text(gated_mlp(p)), [Stage(name, Edit(forward))])
    assert verification.report() == [
        f"{name} is not verified: kernels of a GPU run in lowering/triton/interpreter",
        "0 values are the same before and after a pass",
    ]
