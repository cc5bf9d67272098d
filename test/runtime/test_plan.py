"""From a lowered module to a plan, and the plan to JSON and back."""

import json
import re

import pytest
import torch
from fakes import PRELUDE, from_builtin, kernel, main, plan_of, qtensor, to_builtin

from qfuse.compiler.plan import build_plan
from qfuse.compiler.runtime.plan import KernelStep, Plan, Ref, TensorType, TorchStep
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.registry import load_all
from qfuse.lowering.cpu.kernel import Parameter

X = "!torch.vtensor<[?,8],f32>"


def weight_type(rows: int) -> str:
    return qtensor(f"{rows}x256", "128, 128")


def round_trip(plan: Plan) -> Plan:
    return Plan.from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False)))


def step_of(body: str, arguments: str = "x: ?x8xf32 input", result: str = "?x8xf32") -> TorchStep:
    """The only step of a program that returns %y."""
    plan = plan_of(main(arguments, f"y: {result} output", body))
    assert round_trip(plan) == plan
    (step,) = plan.steps
    assert isinstance(step, TorchStep)
    return step


def test_operands_follow_the_schema() -> None:
    step = step_of("""
      %one = torch.constant.int 1
      %y = torch.aten.add.Tensor %x, %x, %one
        : !torch.vtensor<[?,8],f32>, !torch.vtensor<[?,8],f32>, !torch.int
        -> !torch.vtensor<[?,8],f32>
    """)
    assert step.op == "aten.add.Tensor"
    assert step.args == (Ref(0), Ref(0))
    assert step.kwargs == (("alpha", 1),)


def test_overload_that_is_not_written_is_the_default() -> None:
    step = step_of(
        "%y = torch.aten.silu %x : !torch.vtensor<[?,8],f32> -> !torch.vtensor<[?,8],f32>"
    )
    assert (step.op, step.args) == ("aten.silu", (Ref(0),))


def test_numbers_become_dtypes_and_devices_cpu() -> None:
    step = step_of(
        """
      %dtype = torch.constant.int 15
      %layout = torch.constant.int 0
      %device = torch.constant.device "meta"
      %none = torch.constant.none
      %false = torch.constant.bool false
      %y = torch.aten.to.dtype_layout %x, %dtype, %layout, %device, %none, %false, %false, %none
        : !torch.vtensor<[?,8],f32>, !torch.int, !torch.int, !torch.Device, !torch.none,
          !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[?,8],bf16>
    """,
        result="?x8xbf16",
    )
    given = dict(step.kwargs)
    assert given["dtype"] is torch.bfloat16
    assert given["layout"] is torch.strided
    assert given["device"] == torch.device("cpu")
    assert given["pin_memory"] is None


def test_prims_and_operators_of_other_namespaces() -> None:
    step = step_of(
        """
      %dtype = torch.constant.int 15
      %y = torch.prims.convert_element_type %x, %dtype
        : !torch.vtensor<[?,8],f32>, !torch.int -> !torch.vtensor<[?,8],bf16>
    """,
        result="?x8xbf16",
    )
    assert (step.op, step.args) == ("prims.convert_element_type", (Ref(0), torch.bfloat16))

    step = step_of(
        """
      %scale = torch.constant.float 1.250000e-01
      %window = torch.constant.int 0
      %y = torch.operator "torch.qfuse.attention"(%q, %k, %k, %p, %scale, %window)
        : (!torch.vtensor<[1,2,?,4],f32>, !torch.vtensor<[1,2,9,4],f32>,
           !torch.vtensor<[1,2,9,4],f32>, !torch.vtensor<[?],si64>, !torch.float, !torch.int)
        -> !torch.vtensor<[1,?,2,4],f32>
    """,
        "q: 1x2x?x4xf32 input\nk: 1x2x9x4xf32 input\np: ?xsi64 input",
        "1x?x2x4xf32",
    )
    assert (step.op, step.args[4:]) == ("qfuse.attention", (0.125, 0))


def test_lists_sizes_and_infinite_constants() -> None:
    plan = plan_of(
        main(
            "x: ?x8xf32 input",
            "y: ?x2x4xf32 output",
            """
      %zero = torch.constant.int 0
      %two = torch.constant.int 2
      %four = torch.constant.int 4
      %inf = torch.constant.float 0x7FF0000000000000
      %n = torch.aten.size.int %x, %zero : !torch.vtensor<[?,8],f32>, !torch.int -> !torch.int
      %shape = torch.prim.ListConstruct %n, %two, %four
        : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
      %z = torch.aten.clamp_max %x, %inf
        : !torch.vtensor<[?,8],f32>, !torch.float -> !torch.vtensor<[?,8],f32>
      %y = torch.aten.view %z, %shape
        : !torch.vtensor<[?,8],f32>, !torch.list<int> -> !torch.vtensor<[?,2,4],f32>
    """,
        )
    )
    assert round_trip(plan) == plan
    size, clamp, view = plan.steps
    assert size.args == (Ref(0), 0)
    assert clamp.args == (Ref(0), float("inf"))
    assert view.args == (Ref(clamp.results[0]), [Ref(size.results[0]), 2, 4])


def test_assertions_and_dead_steps_vanish() -> None:
    plan = plan_of(
        main(
            "x: ?x8xf32 input\nw: 8xf32 parameter",
            "x: ?x8xf32 output",
            """
      %none = torch.constant.none
      %f32 = torch.constant.int 6
      %device = torch.constant.device "meta"
      %strided = torch.constant.int 0
      torch.aten._assert_tensor_metadata %x, %none, %none, %f32, %device, %strided
        : !torch.vtensor<[?,8],f32>, !torch.none, !torch.none, !torch.int, !torch.Device, !torch.int
      %unused = torch.aten.mul.Tensor %x, %w
        : !torch.vtensor<[?,8],f32>, !torch.vtensor<[8],f32> -> !torch.vtensor<[?,8],f32>
    """,
        )
    )
    assert plan.steps == ()
    assert plan.parameters == ()


def test_kernel_calls_and_their_types() -> None:
    plan = plan_of(
        main(
            "x: ?x8xf32 input",
            "y: ?x8xf32 output",
            to_builtin("x")
            + """
      %a, %b = func.call @both(%x_b) : (tensor<?x8xf32>) -> (tensor<?x8xf32>, tensor<?x8xf32>)
      %y_b = func.call @add(%a, %b) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
    """
            + from_builtin("y"),
        )
    )
    assert round_trip(plan) == plan
    both, add = plan.steps
    assert isinstance(both, KernelStep) and isinstance(add, KernelStep)
    assert (both.kernel, both.operands, add.operands) == ("both", (0,), both.results)
    assert [k.name for k in plan.kernels] == ["both", "add"]
    assert plan.kernels[0].results == (TensorType((-1, 8), "float32"),) * 2
    assert plan.outputs[0].arg == Ref(add.results[0])


def weights(calls: str, parts: int = 1) -> str:
    """A program with `parts` FP8 weights [192, 256], packed as %q0, %q1, ..."""
    arguments = ["x: ?x256xf32 input"]
    body = [to_builtin("x", type="?x256xf32")]
    for i in range(parts):
        arguments += [f"w{i}: 192x256xf8E4M3FN parameter", f"s{i}: 2x2xf32 parameter"]
        body.append(to_builtin(f"w{i}", type="192x256xf8E4M3FN"))
        body.append(to_builtin(f"s{i}", type="2x2xf32"))
        body.append(
            f'%q{i} = "qfuse.pack"(%w{i}_b, %s{i}_b) : '
            f"(tensor<192x256xf8E4M3FN>, tensor<2x2xf32>) -> {weight_type(192)}"
        )
    kernels = "".join(
        f"func.func private @linear{n}(%x: tensor<?x256xf32>, %w: {weight_type(n)}) -> "
        f"tensor<?x{n}xf32> attributes {{qfuse.kernel}} {{\n"
        f'  %y = "test.product"(%x, %w) : (tensor<?x256xf32>, {weight_type(n)}) -> '
        f"tensor<?x{n}xf32>\n  return %y : tensor<?x{n}xf32>\n}}\n"
        for n in (192, 448)
    )
    results = re.findall(r"%(y\w*)_b = func.call @linear(\d+)", calls)
    casts = "\n".join(from_builtin(name, type=f"?x{n}xf32") for name, n in results)
    outputs = "\n".join(f"{name}: ?x{n}xf32 output" for name, n in results)
    return kernels + main("\n".join(arguments), outputs, "\n".join([*body, calls, casts]))


def call_linear(result: str, weight: str, n: int = 192) -> str:
    types = f"(tensor<?x256xf32>, {weight_type(n)}) -> tensor<?x{n}xf32>"
    return f"%{result}_b = func.call @linear{n}(%x_b, %{weight}) : {types}\n"


def plan_with_weights(text: str) -> Plan:
    kernels = {f"linear{n}": kernel(f"linear{n}", "matmul", n, 2, packed=1) for n in (192, 448)}
    with ir.Context() as context, ir.Location.unknown():
        load_all()
        context.allow_unregistered_dialects = True
        return build_plan(ir.Module.parse(PRELUDE + text), kernels)


def test_a_weight_used_twice_is_prepared_once() -> None:
    plan = plan_with_weights(weights(call_linear("y0", "q0") + call_linear("y1", "q0")))
    assert round_trip(plan) == plan
    (prepare,) = plan.prepares
    assert prepare.block == (128, 128)
    assert [s.operands for s in plan.steps] == [(0, prepare.packed, prepare.scale)] * 2
    assert plan.kernels[0].operands == (TensorType((-1, 256), "float32"), None, None)


def test_joined_weights_are_prepared_as_parts() -> None:
    join = (
        f'%joined = "qfuse.concat"(%q0, %q1) {{operandSegmentSizes = array<i32: 1, 1, 0, 0>}} : '
        f"({weight_type(192)}, {weight_type(192)}) -> {weight_type(448)}\n"
    )
    plan = plan_with_weights(weights(join + call_linear("y", "joined", 448), parts=2))
    (prepare,) = plan.prepares
    names = {p.value: p.name for p in plan.parameters}
    assert [tuple(names[v] for v in part) for part in prepare.parts] == [("w0", "s0"), ("w1", "s1")]


def test_quantized_values_are_two_values() -> None:
    q = qtensor("?x8", "1, 4")
    quantize = kernel("quantize", "nothing", 8, 1, 0)
    parameters = (
        Parameter("operand", 0),
        Parameter("result", 0),
        Parameter("result", 0, "scale"),
    )
    quantize = type(quantize)(**{**quantize.__dict__, "parameters": parameters})
    plan = plan_of(
        f"func.func private @quantize(%x: tensor<?x8xf32>) -> {q} attributes {{qfuse.kernel}} {{\n"
        f'  %y = "qfuse.quantize"(%x) : (tensor<?x8xf32>) -> {q}\n  return %y : {q}\n}}\n'
        + main(
            "x: ?x8xf32 input",
            "codes: ?x8xf8E4M3FN output\nscale: ?x2xf32 output",
            to_builtin("x")
            + f"""
      %q = func.call @quantize(%x_b) : (tensor<?x8xf32>) -> {q}
      %codes_b, %scale_b = "qfuse.unpack"(%q)
        : ({q}) -> (tensor<?x8xf8E4M3FN>, tensor<?x2xf32>)
      """
            + from_builtin("codes", type="?x8xf8E4M3FN")
            + "\n"
            + from_builtin("scale", type="?x2xf32"),
        ),
        {"quantize": quantize},
    )
    (step,) = plan.steps
    assert [o.arg.value for o in plan.outputs] == list(step.results)
    assert plan.kernels[0].results == (
        TensorType((-1, 8), "float8_e4m3fn"),
        TensorType((-1, 2), "float32"),
    )


def test_literals_keep_their_bits() -> None:
    plan = plan_of(
        main(
            "x: ?x8xf32 input",
            "a: 2xbf16 output\nb: 2xi1 output\nc: si64 output\nd: 3xf32 output",
            """
      %a = torch.vtensor.literal(dense<[1.0, -2.5]> : tensor<2xbf16>) : !torch.vtensor<[2],bf16>
      %b = torch.vtensor.literal(dense<[true, false]> : tensor<2xi1>) : !torch.vtensor<[2],i1>
      %c = torch.vtensor.literal(dense<-3> : tensor<si64>) : !torch.vtensor<[],si64>
      %d = torch.vtensor.literal(dense<7.0> : tensor<3xf32>) : !torch.vtensor<[3],f32>
    """,
        )
    )
    plan = round_trip(plan)
    found = [
        torch.frombuffer(bytearray(x.data), dtype=getattr(torch, x.type.dtype)).reshape(
            x.type.shape
        )
        for x in plan.literals
    ]
    assert found[0].equal(torch.tensor([1.0, -2.5], dtype=torch.bfloat16))
    assert found[1].equal(torch.tensor([True, False]))
    assert found[2].equal(torch.tensor(-3))
    assert found[3].equal(torch.tensor([7.0] * 3))


REFUSED = {
    "an operation of qfuse that is no kernel": (
        to_builtin("x")
        + '\n%y_b = "qfuse.silu"(%x_b) : (tensor<?x8xf32>) -> tensor<?x8xf32> loc("layer.3")\n'
        + from_builtin("y"),
        "cannot express 'qfuse.silu' at \"layer.3\"",
    ),
    "control flow": (
        """
      %true = torch.constant.bool true
      %y = torch.prim.If %true -> (!torch.vtensor<[?,8],f32>) {
        torch.prim.If.yield %x : !torch.vtensor<[?,8],f32>
      } else {
        torch.prim.If.yield %x : !torch.vtensor<[?,8],f32>
      }""",
        "cannot express 'torch.prim.If'",
    ),
    "an operator torch lacks": (
        '%y = torch.operator "torch.nowhere.thing"(%x) '
        ": (!torch.vtensor<[?,8],f32>) -> !torch.vtensor<[?,8],f32>",
        "has no operator nowhere.thing",
    ),
    "a write to an operand": (
        '%y = torch.operator "torch.aten.relu_"(%x) '
        ": (!torch.vtensor<[?,8],f32>) -> !torch.vtensor<[?,8],f32>",
        "functionalize the graph",
    ),
    "a kernel that does not exist": (
        to_builtin("x")
        + "\n%y_b = func.call @other(%x_b) : (tensor<?x8xf32>) -> tensor<?x8xf32>\n"
        + from_builtin("y"),
        "@other is not a kernel",
    ),
    "another device": (
        """
      %device = torch.constant.device "cuda:0"
      %f32 = torch.constant.int 6
      %false = torch.constant.bool false
      %none = torch.constant.none
      %y = torch.aten.to.device %x, %device, %f32, %false, %false, %none
        : !torch.vtensor<[?,8],f32>, !torch.Device, !torch.int, !torch.bool, !torch.bool,
          !torch.none -> !torch.vtensor<[?,8],f32>""",
        "cannot place a tensor on cuda:0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_operation_and_location(case: str) -> None:
    body, message = REFUSED[case]
    other = (
        "func.func private @other(%x: tensor<?x8xf32>) -> tensor<?x8xf32> "
        "{ return %x : tensor<?x8xf32> }\n"
    )
    with pytest.raises(QfuseError, match=re.escape(message)) as caught:
        plan_of(other + main("x: ?x8xf32 input", "y: ?x8xf32 output", body))
    assert "\n" not in str(caught.value)


def test_arguments_must_say_what_they_are() -> None:
    with pytest.raises(QfuseError, match=r"argument 0 of @main needs the attributes qfuse\.kind"):
        plan_of("func.func @main(%x: !torch.vtensor<[2],f32>) { return }")
    with pytest.raises(QfuseError, match="result c of @main"):
        plan_of(
            main(
                "x: 2xf32 input",
                "c: 2xf32 cache",
                "%c = torch.aten.silu %x : !torch.vtensor<[2],f32> -> !torch.vtensor<[2],f32>",
            )
        )


def test_a_damaged_plan_is_one_line() -> None:
    with pytest.raises(QfuseError, match="damaged"):
        Plan.from_json({"parameters": []})


@pytest.mark.parametrize(
    ("kwargs", "results"), [({"dtype=print()": None}, [1]), ({}, ["1 = print()"])]
)
def test_a_plan_from_a_file_brings_no_source(
    kwargs: dict[str, None], results: list[object]
) -> None:
    """Names of arguments and numbers of values become part of a Python function."""
    plan = Plan(*[()] * 9).to_json()
    assert Plan.from_json(plan) == Plan(*[()] * 9)
    plan["steps"] = [["torch", "aten.relu", [{"value": 0}], kwargs, results, ""]]
    with pytest.raises(QfuseError, match="damaged"):
        Plan.from_json(plan)
