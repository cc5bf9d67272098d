// RUN: qfuse-opt --qfuse-raise-torch --remarks %s 2>&1 | filecheck %s

// GLUs that clamp gate and up, as dense layers write them in torch.

// CHECK-DAG: glu: fired at torch.aten.mul.Tensor
// CHECK-DAG: glu: refused at torch.aten.mul.Tensor: gate is clamped to -inf .. 7.0 and up to -3.0 .. 7.0; clamp gate from above, and up at the same limit from both sides
// CHECK-DAG: glu: refused at torch.aten.mul.Tensor: gate is clamped to -7.0 .. 7.0 and up to -7.0 .. 7.0; clamp gate from above
// CHECK-DAG: glu: refused at torch.aten.mul.Tensor: limit is -7.0; it must be positive
// CHECK-DAG: glu: refused at torch.aten.mul.Tensor: a bound or factor of the GLU is not a constant
// CHECK-DAG: glu: refused at torch.aten.silu: the activation has 2 readers; read the product with up only, to make it a GLU

!b = tensor<?x200xbf16>
!g = !torch.vtensor<[?,200],bf16>

// CHECK-LABEL: func.func @clamped
// CHECK:         %[[Y:.+]] = "qfuse.glu"(%arg0, %arg1) {act = "silu", limit = 7.000000e+00 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>}
// CHECK-NEXT:    torch_c.from_builtin_tensor %[[Y]]
// CHECK-NEXT:    return
func.func @clamped(%a: !b, %b: !b) -> !g {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %limit = torch.constant.float 7.0
  %minus = torch.constant.float -7.0
  %gate = torch_c.from_builtin_tensor %a : !b -> !g
  %up = torch_c.from_builtin_tensor %b : !b -> !g
  %g = torch.aten.clamp %gate, %none, %limit : !g, !torch.none, !torch.float -> !g
  %s = torch.aten.silu %g : !g -> !g
  %u = torch.aten.clamp %up, %minus, %limit : !g, !torch.float, !torch.float -> !g
  %y = torch.aten.mul.Tensor %s, %u : !g, !g -> !g
  return %y : !g
}

// Up comes first, the activation is the tanh form, and the bounds are whole numbers.
// CHECK-LABEL: func.func @other_order
// CHECK:         "qfuse.glu"(%arg0, %arg1) {act = "gelu_tanh", limit = 7.000000e+00 : f64
// CHECK-NOT:     torch.aten
func.func @other_order(%a: !b, %b: !b) -> !g {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %limit = torch.constant.int 7
  %minus = torch.constant.int -7
  %gate = torch_c.from_builtin_tensor %a : !b -> !g
  %up = torch_c.from_builtin_tensor %b : !b -> !g
  %tanh = torch.constant.str "tanh"
  %g = torch.aten.clamp %gate, %none, %limit : !g, !torch.none, !torch.int -> !g
  %s = torch.aten.gelu %g, %tanh : !g, !torch.str -> !g
  %u = torch.aten.clamp %up, %minus, %limit : !g, !torch.int, !torch.int -> !g
  %y = torch.aten.mul.Tensor %u, %s : !g, !g -> !g
  return %y : !g
}

// gpt-oss's, as transformers writes it.
// CHECK-LABEL: func.func @gpt_oss
// CHECK:         "qfuse.glu"(%arg0, %arg1) {act = "swiglu_oai", alpha = 1.500000e+00 : f64, limit = 7.000000e+00 : f64
// CHECK-NOT:     torch.aten
func.func @gpt_oss(%a: !b, %b: !b) -> !g {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %limit = torch.constant.float 7.0
  %minus = torch.constant.float -7.0
  %gate = torch_c.from_builtin_tensor %a : !b -> !g
  %up = torch_c.from_builtin_tensor %b : !b -> !g
  %g = torch.aten.clamp %gate, %none, %limit : !g, !torch.none, !torch.float -> !g
  %u = torch.aten.clamp %up, %minus, %limit : !g, !torch.float, !torch.float -> !g
  %alpha = torch.constant.float 1.5
  %p = torch.aten.add.Scalar %u, %one, %one : !g, !torch.int, !torch.int -> !g
  %t = torch.aten.mul.Scalar %g, %alpha : !g, !torch.float -> !g
  %s = torch.aten.sigmoid %t : !g -> !g
  %h = torch.aten.mul.Tensor %g, %s : !g, !g -> !g
  %y = torch.aten.mul.Tensor %p, %h : !g, !g -> !g
  return %y : !g
}

// The same with the factors of both products exchanged.
// CHECK-LABEL: func.func @gpt_oss_exchanged
// CHECK:         "qfuse.glu"(%arg0, %arg1) {act = "swiglu_oai", alpha = 1.500000e+00 : f64, limit = 7.000000e+00 : f64
// CHECK-NOT:     torch.aten
func.func @gpt_oss_exchanged(%a: !b, %b: !b) -> !g {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %limit = torch.constant.float 7.0
  %minus = torch.constant.float -7.0
  %gate = torch_c.from_builtin_tensor %a : !b -> !g
  %up = torch_c.from_builtin_tensor %b : !b -> !g
  %g = torch.aten.clamp %gate, %none, %limit : !g, !torch.none, !torch.float -> !g
  %u = torch.aten.clamp %up, %minus, %limit : !g, !torch.float, !torch.float -> !g
  %alpha = torch.constant.float 1.5
  %p = torch.aten.add.Scalar %u, %one, %one : !g, !torch.int, !torch.int -> !g
  %t = torch.aten.mul.Scalar %g, %alpha : !g, !torch.float -> !g
  %s = torch.aten.sigmoid %t : !g -> !g
  %h = torch.aten.mul.Tensor %s, %g : !g, !g -> !g
  %y = torch.aten.mul.Tensor %h, %p : !g, !g -> !g
  return %y : !g
}

// Two more than up: not that GLU, and nothing is said of it.
// CHECK-LABEL: func.func @plus_two
// CHECK-NOT:     "qfuse.glu"
// CHECK:         return
func.func @plus_two(%a: !b, %b: !b) -> !g {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %limit = torch.constant.float 7.0
  %minus = torch.constant.float -7.0
  %gate = torch_c.from_builtin_tensor %a : !b -> !g
  %up = torch_c.from_builtin_tensor %b : !b -> !g
  %two = torch.constant.int 2
  %g = torch.aten.clamp %gate, %none, %limit : !g, !torch.none, !torch.float -> !g
  %u = torch.aten.clamp %up, %minus, %limit : !g, !torch.float, !torch.float -> !g
  %alpha = torch.constant.float 1.5
  %p = torch.aten.add.Scalar %u, %two, %one : !g, !torch.int, !torch.int -> !g
  %t = torch.aten.mul.Scalar %g, %alpha : !g, !torch.float -> !g
  %s = torch.aten.sigmoid %t : !g -> !g
  %h = torch.aten.mul.Tensor %g, %s : !g, !g -> !g
  %y = torch.aten.mul.Tensor %p, %h : !g, !g -> !g
  return %y : !g
}

// Up is clamped elsewhere than gate.
// CHECK-LABEL: func.func @two_limits
// CHECK-NOT:     "qfuse.glu"({{.*}}limit
// CHECK:         "qfuse.clamp"
// CHECK:         return
func.func @two_limits(%a: !b, %b: !b) -> !g {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %limit = torch.constant.float 7.0
  %minus = torch.constant.float -7.0
  %gate = torch_c.from_builtin_tensor %a : !b -> !g
  %up = torch_c.from_builtin_tensor %b : !b -> !g
  %three = torch.constant.float -3.0
  %g = torch.aten.clamp %gate, %none, %limit : !g, !torch.none, !torch.float -> !g
  %s = torch.aten.silu %g : !g -> !g
  %u = torch.aten.clamp %up, %three, %limit : !g, !torch.float, !torch.float -> !g
  %y = torch.aten.mul.Tensor %s, %u : !g, !g -> !g
  return %y : !g
}

// Gate is clamped from below, too.
// CHECK-LABEL: func.func @gate_from_below
// CHECK-NOT:     "qfuse.glu"({{.*}}limit
// CHECK:         "qfuse.clamp"
// CHECK:         return
func.func @gate_from_below(%a: !b, %b: !b) -> !g {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %limit = torch.constant.float 7.0
  %minus = torch.constant.float -7.0
  %gate = torch_c.from_builtin_tensor %a : !b -> !g
  %up = torch_c.from_builtin_tensor %b : !b -> !g
  %g = torch.aten.clamp %gate, %minus, %limit : !g, !torch.float, !torch.float -> !g
  %s = torch.aten.silu %g : !g -> !g
  %u = torch.aten.clamp %up, %minus, %limit : !g, !torch.float, !torch.float -> !g
  %y = torch.aten.mul.Tensor %s, %u : !g, !g -> !g
  return %y : !g
}

// Bounds that cross.
// CHECK-LABEL: func.func @crossed
// CHECK-NOT:     "qfuse.glu"({{.*}}limit
// CHECK:         torch.aten.clamp
// CHECK:         return
func.func @crossed(%a: !b, %b: !b) -> !g {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %limit = torch.constant.float 7.0
  %minus = torch.constant.float -7.0
  %gate = torch_c.from_builtin_tensor %a : !b -> !g
  %up = torch_c.from_builtin_tensor %b : !b -> !g
  %g = torch.aten.clamp %gate, %none, %minus : !g, !torch.none, !torch.float -> !g
  %s = torch.aten.silu %g : !g -> !g
  %u = torch.aten.clamp %up, %limit, %minus : !g, !torch.float, !torch.float -> !g
  %y = torch.aten.mul.Tensor %s, %u : !g, !g -> !g
  return %y : !g
}

// Nobody knows the limit.
// CHECK-LABEL: func.func @unknown_limit
// CHECK-NOT:     "qfuse.glu"({{.*}}limit
// CHECK:         torch.aten.clamp
// CHECK:         return
func.func @unknown_limit(%a: !b, %b: !b, %any: !torch.float) -> !g {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %limit = torch.constant.float 7.0
  %minus = torch.constant.float -7.0
  %gate = torch_c.from_builtin_tensor %a : !b -> !g
  %up = torch_c.from_builtin_tensor %b : !b -> !g
  %g = torch.aten.clamp %gate, %none, %any : !g, !torch.none, !torch.float -> !g
  %s = torch.aten.silu %g : !g -> !g
  %u = torch.aten.clamp %up, %minus, %limit : !g, !torch.float, !torch.float -> !g
  %y = torch.aten.mul.Tensor %s, %u : !g, !g -> !g
  return %y : !g
}

// Somebody else reads the activation.
// CHECK-LABEL: func.func @two_readers
// CHECK-NOT:     "qfuse.glu"
// CHECK:         "qfuse.clamp"
// CHECK:         return
func.func @two_readers(%a: !b, %b: !b) -> (!g, !g) {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %limit = torch.constant.float 7.0
  %minus = torch.constant.float -7.0
  %gate = torch_c.from_builtin_tensor %a : !b -> !g
  %up = torch_c.from_builtin_tensor %b : !b -> !g
  %g = torch.aten.clamp %gate, %none, %limit : !g, !torch.none, !torch.float -> !g
  %s = torch.aten.silu %g : !g -> !g
  %u = torch.aten.clamp %up, %minus, %limit : !g, !torch.float, !torch.float -> !g
  %y = torch.aten.mul.Tensor %s, %u : !g, !g -> !g
  return %y, %s : !g, !g
}

// Nothing of qfuse is near.
// CHECK-LABEL: func.func @far_away
// CHECK:         torch.aten.silu
// CHECK-NOT:     qfuse.
// CHECK:         return
func.func @far_away(%gate: !g, %up: !g) -> !g {
  %none = torch.constant.none
  %limit = torch.constant.float 7.0
  %minus = torch.constant.float -7.0
  %g = torch.aten.clamp %gate, %none, %limit : !g, !torch.none, !torch.float -> !g
  %s = torch.aten.silu %g : !g -> !g
  %u = torch.aten.clamp %up, %minus, %limit : !g, !torch.float, !torch.float -> !g
  %y = torch.aten.mul.Tensor %s, %u : !g, !g -> !g
  return %y : !g
}
