// RUN: qfuse-opt --qfuse-fuse-epilogue --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-epilogue --split-input-file --verify-diagnostics %s

// Chains of any element-wise operations, in any order.

// Soft-cap: tanh(y / c) * c. Numbers are written into the region, and take no operand.
// CHECK-LABEL: func.func @soft_cap
// CHECK:         "qfuse.matmul"(%{{[^,]*}}, %{{[^,]*}}) ({
// CHECK-NEXT:    ^bb0(%[[ACC:[^,]*]]: f32):
// CHECK:           %[[C:.+]] = arith.constant 3.000000e+01 : f32
// CHECK:           %[[Q:.+]] = arith.divf %{{.+}}, %[[C]]
// CHECK:           arith.truncf %[[Q]] : f32 to bf16
// CHECK:           %[[T:.+]] = math.tanh
// CHECK:           arith.truncf %[[T]] : f32 to bf16
// CHECK:           arith.mulf
// CHECK:         maps = []
// CHECK-NEXT:    return
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
func.func @soft_cap(%x: !x, %w: !w) -> !y {
  %c = arith.constant dense<30.0> : tensor<f32>
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.div}}
  %1 = "qfuse.div"(%0, %c) : (!y, tensor<f32>) -> !y
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.tanh}}
  %2 = "qfuse.tanh"(%1) : (!y) -> !y
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.mul}}
  %3 = "qfuse.mul"(%2, %c) : (!y, tensor<f32>) -> !y
  return %3 : !y
}

// -----

// Everything at once: scale per channel, relu squared, two residuals (one subtracted, from the
// left), a clamp with one bound, and a cast in the middle.
// CHECK-LABEL: func.func @long_chain
// CHECK:         ^bb0(%{{.+}}: f32, %[[S:.+]]: f32, %[[R:.+]]: f32, %[[Q:.+]]: f32):
// CHECK:           arith.mulf %{{.+}}, %[[S]]
// CHECK:           arith.maximumf
// CHECK:           %[[E:.+]] = arith.mulf %[[V:.+]], %[[V]]
// CHECK:           arith.subf %[[R]], %{{.+}}
// CHECK:           arith.addf %{{.+}}, %[[Q]]
// CHECK:           arith.minimumf
// CHECK-NOT:       arith.maximumf
// CHECK:           arith.negf
// CHECK:         maps = ["[N]", "[M,N]", "[M,N]"]
// CHECK-SAME:    -> tensor<?x1400xf32>
// CHECK-NEXT:    return
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
!z = tensor<?x1400xf32>
func.func @long_chain(%x: !x, %w: !w, %s: tensor<1x1400xbf16>, %r: !y, %q: !z) -> !z {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-bias: fired at qfuse.mul}}
  %1 = "qfuse.mul"(%0, %s) : (!y, tensor<1x1400xbf16>) -> !y
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.relu}}
  %2 = "qfuse.relu"(%1) : (!y) -> !y
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.square}}
  %3 = "qfuse.square"(%2) : (!y) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired at qfuse.sub}}
  %4 = "qfuse.sub"(%r, %3) : (!y, !y) -> !y
  // expected-remark @+1 {{epilogue-residual-unary: fired at qfuse.cast}}
  %5 = "qfuse.cast"(%4) : (!y) -> !z
  // expected-remark @+1 {{epilogue-residual-binary: fired at qfuse.add}}
  %6 = "qfuse.add"(%5, %q) : (!z, !z) -> !z
  // expected-remark @+1 {{epilogue-residual-unary: fired at qfuse.clamp}}
  %7 = "qfuse.clamp"(%6) {low = 0xFFF0000000000000 : f64, high = 7.0 : f64} : (!z) -> !z
  // expected-remark @+1 {{epilogue-residual-unary: fired at qfuse.neg}}
  %8 = "qfuse.neg"(%7) : (!z) -> !z
  return %8 : !z
}

// -----

// An activation of an activation: both are there, in their order.
// CHECK-LABEL: func.func @activation_of_an_activation
// CHECK:           arith.maximumf
// CHECK:           math.exp
// CHECK:           arith.divf
// CHECK:           "qfuse.yield"
// CHECK-NEXT:    {{.*}}maps = []
// CHECK-NEXT:    return
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
func.func @activation_of_an_activation(%x: !x, %w: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.relu}}
  %1 = "qfuse.relu"(%0) : (!y) -> !y
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.silu}}
  %2 = "qfuse.silu"(%1) : (!y) -> !y
  return %2 : !y
}

// -----

// A value and what is made of it meet again: y * sigmoid(y) is one result, and nothing is read.
// CHECK-LABEL: func.func @meets_itself
// CHECK:         %[[R:[^:]+]] = "qfuse.matmul"
// CHECK-NEXT:    ^bb0(%{{[^,]*}}: f32):
// CHECK:           math.exp
// CHECK:           arith.mulf
// CHECK:           "qfuse.yield"(%{{[^,]*}}) : (f32)
// CHECK-NEXT:    {{.*}}maps = []
// CHECK-NEXT:    return %[[R]]
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
func.func @meets_itself(%x: !x, %w: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.sigmoid}}
  %1 = "qfuse.sigmoid"(%0) : (!y) -> !y
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.mul}}
  %2 = "qfuse.mul"(%0, %1) : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Two results of a product meet, as gate and up of a GLU that is none of `qfuse.glu`'s.
// CHECK-LABEL: func.func @results_meet
// CHECK:         %[[R:[^:]+]] = "qfuse.matmul"
// CHECK-NEXT:    ^bb0(%{{.+}}: f32, %{{.+}}: f32):
// CHECK:           math.exp
// CHECK:           arith.mulf
// CHECK:           "qfuse.yield"(%{{[^,]*}}) : (f32)
// CHECK-NEXT:    {{.*}}maps = []
// CHECK-NEXT:    return %[[R]]
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x256xbf16>
func.func @results_meet(%x: !x, %w: !w) -> !y {
  %0:2 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%gate: f32, %up: f32):
    "qfuse.yield"(%gate, %up) : (f32, f32) -> ()
  }) {parts = array<i64: 256, 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!x, !w) -> (!y, !y)
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.sigmoid}}
  %1 = "qfuse.sigmoid"(%0#0) : (!y) -> !y
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.mul}}
  %2 = "qfuse.mul"(%1, %0#1) : (!y, !y) -> !y
  return %2 : !y
}

// -----

// A GLU of two results that have epilogues of their own.
// CHECK-LABEL: func.func @glu_of_results
// CHECK:         %[[R:[^:]+]] = "qfuse.matmul"
// CHECK-NEXT:    ^bb0(%{{.+}}: f32, %{{.+}}: f32):
// CHECK:           arith.minimumf
// CHECK:           math.exp
// CHECK:           arith.mulf
// CHECK:           "qfuse.yield"(%{{[^,]*}}) : (f32)
// CHECK-NEXT:    {{.*}}maps = []
// CHECK-NEXT:    return %[[R]]
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x256xbf16>
func.func @glu_of_results(%x: !x, %w: !w) -> !y {
  %0:2 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%gate: f32, %up: f32):
    "qfuse.yield"(%gate, %up) : (f32, f32) -> ()
  }) {parts = array<i64: 256, 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!x, !w) -> (!y, !y)
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.clamp}}
  %1 = "qfuse.clamp"(%0#0) {low = 0xFFF0000000000000 : f64, high = 7.0 : f64} : (!y) -> !y
  // expected-remark @+1 {{epilogue-glu: fired at qfuse.glu}}
  %2 = "qfuse.glu"(%1, %0#1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// q, k and v of unequal widths take their biases; one residual that two results read is read once.
// CHECK-LABEL: func.func @biases_of_parts
// CHECK:         %[[R:.+]]:3 = "qfuse.matmul"(%{{[^,]*}}, %{{[^,]*}}, %arg2, %arg3)
// CHECK-NEXT:    ^bb0(%[[Q:.+]]: f32, %[[K:.+]]: f32, %[[V:.+]]: f32, %[[B:.+]]: f32, %[[S:.+]]: f32):
// CHECK:           arith.addf %{{.+}}, %[[B]]
// CHECK:           arith.addf %{{.+}}, %[[S]]
// CHECK:           arith.mulf %{{.+}}, %[[S]]
// CHECK:         maps = ["[N]", "[N]"]
// CHECK-NEXT:    return %[[R]]#0, %[[R]]#1, %[[R]]#2
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!q = tensor<?x256xbf16>
!k = tensor<?x128xbf16>
func.func @biases_of_parts(%x: !x, %w: !w, %b: tensor<256xbf16>, %s: tensor<128xbf16>) -> (!q, !k, !k) {
  %0:3 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%q: f32, %k: f32, %v: f32):
    "qfuse.yield"(%q, %k, %v) : (f32, f32, f32) -> ()
  }) {parts = array<i64: 256, 128, 128>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 1, 0>} : (!x, !w) -> (!q, !k, !k)
  // expected-remark @+1 {{epilogue-bias: fired}}
  %1 = "qfuse.add"(%0#0, %b) : (!q, tensor<256xbf16>) -> !q
  // expected-remark @+1 {{epilogue-bias: fired}}
  %2 = "qfuse.add"(%0#1, %s) : (!k, tensor<128xbf16>) -> !k
  // expected-remark @+1 {{epilogue-bias: fired}}
  %3 = "qfuse.mul"(%0#2, %s) : (!k, tensor<128xbf16>) -> !k
  return %1, %2, %3 : !q, !k, !k
}

// -----

// The products of experts take what is the same for every row.
// CHECK-LABEL: func.func @products_of_experts
// CHECK:         "qfuse.group_matmul"(%{{[^,]*}}, %{{[^,]*}}, %{{[^,]*}}, %{{[^,]*}}, %arg4)
// CHECK:           arith.addf
// CHECK:           math.tanh
// CHECK:         maps = ["[N]"]
// CHECK-NEXT:    return
!x = tensor<?x64xbf16>
!w = tensor<4x128x64xbf16>
!y = tensor<?x2x128xbf16>
func.func @products_of_experts(%x: !x, %w: !w, %indptr: tensor<5xi32>, %tokens: tensor<?x2xi32>, %b: tensor<128xbf16>) -> !y {
  %c = arith.constant dense<5.0> : tensor<f32>
  %0 = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 128>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, tensor<5xi32>, tensor<?x2xi32>) -> !y
  // expected-remark @+1 {{epilogue-bias: fired}}
  %1 = "qfuse.add"(%0, %b) : (!y, tensor<128xbf16>) -> !y
  // expected-remark @+1 {{epilogue-activation: fired}}
  %2 = "qfuse.mul"(%c, %1) : (tensor<f32>, !y) -> !y
  // expected-remark @+1 {{epilogue-activation: fired}}
  %3 = "qfuse.tanh"(%2) : (!y) -> !y
  return %3 : !y
}
