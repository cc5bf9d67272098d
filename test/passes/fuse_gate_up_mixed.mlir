// RUN: qfuse-opt --qfuse-fuse-gate-up --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-gate-up --split-input-file --verify-diagnostics %s

// What cannot stand in one weight, or be read by one product, stays two.

// As in Q4_K_M files, where some layers keep more bits; never quantized again.
// CHECK-LABEL: func.func @q4_k_and_q6_k
// CHECK-NOT:     "qfuse.concat"
// CHECK:         "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!g = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">>
!u = !qfuse.qtensor<tensor<200x512xi6>, #qfuse.scheme<array<i64: 1, 256>, i8, "q6_k", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @q4_k_and_q6_k(%x: !x, %g: !g, %u: !u) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !g) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !u) -> !y
  // expected-remark @+1 {{gate-up: refused at qfuse.glu: weights are stored as i4 and i6; quantize both alike}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Groups of 32 and of 64.
// CHECK-LABEL: func.func @group_sizes
// CHECK-NOT:     "qfuse.concat"
// CHECK:         "qfuse.glu"
!x = tensor<?x512xbf16>
!g = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "none", "row_major">>
!u = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 64>, bf16, "int4", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @group_sizes(%x: !x, %g: !g, %u: !u) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !g) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !u) -> !y
  // expected-remark @+1 {{gate-up: refused at qfuse.glu: weight schemes differ: #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "none", "row_major"> and #qfuse.scheme<array<i64: 1, 64>, bf16, "int4", "none", "row_major">; quantize both weights alike}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Zero points on one side.
// CHECK-LABEL: func.func @zero_points
// CHECK-NOT:     "qfuse.concat"
// CHECK:         "qfuse.glu"
!x = tensor<?x512xbf16>
!g = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "none", "row_major">>
!u = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "int", "row_major">>
!y = tensor<?x200xbf16>
func.func @zero_points(%x: !x, %g: !g, %u: !u) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !g) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !u) -> !y
  // expected-remark @+1 {{gate-up: refused at qfuse.glu: weight schemes differ: #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "none", "row_major"> and #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "int", "row_major">; quantize both weights alike}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Scales of f16 and of bf16.
// CHECK-LABEL: func.func @scale_types
// CHECK-NOT:     "qfuse.concat"
// CHECK:         "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!g = !qfuse.qtensor<tensor<200x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "none", "none", "row_major">>
!u = !qfuse.qtensor<tensor<200x512xi8>, #qfuse.scheme<array<i64: 1, 32>, bf16, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @scale_types(%x: !x, %g: !g, %u: !u) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !g) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !u) -> !y
  // expected-remark @+1 {{gate-up: refused at qfuse.glu: weight schemes differ: #qfuse.scheme<array<i64: 1, 32>, f16, "none", "none", "row_major"> and #qfuse.scheme<array<i64: 1, 32>, bf16, "none", "none", "row_major">; quantize both weights alike}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Scales of any size and powers of two.
// CHECK-LABEL: func.func @scale_kinds
// CHECK-NOT:     "qfuse.concat"
// CHECK:         "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
!g = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
!u = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f8E8M0FNU, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @scale_kinds(%x: !x, %g: !g, %u: !u) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !g) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !u) -> !y
  // expected-remark @+1 {{gate-up: refused at qfuse.glu: weight schemes differ: #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major"> and #qfuse.scheme<array<i64: 128, 128>, f8E8M0FNU, "none", "none", "row_major">; quantize both weights alike}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Blocks beside channels.
// CHECK-LABEL: func.func @blocks_and_channels
// CHECK-NOT:     "qfuse.concat"
// CHECK:         "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
!g = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
!u = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @blocks_and_channels(%x: !x, %g: !g, %u: !u) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !g) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !u) -> !y
  // expected-remark @+1 {{gate-up: refused at qfuse.glu: weight schemes differ: #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major"> and #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">; quantize both weights alike}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Inputs of two quantizations of one value, as with a pre-scale on one side, are two inputs.
// CHECK-LABEL: func.func @activation_schemes
// CHECK-NOT:     "qfuse.concat"
// CHECK:         "qfuse.glu"
!x = tensor<?x512xbf16>
!xg = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
!xt = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @activation_schemes(%x: !x, %g: !w, %u: !w) -> !y {
  %a = "qfuse.quantize"(%x) : (!x) -> !xg
  %b = "qfuse.quantize"(%x) : (!x) -> !xt
  %0 = "qfuse.matmul"(%a, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xg, !w) -> !y
  %1 = "qfuse.matmul"(%b, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xt, !w) -> !y
  // expected-remark @+1 {{the products read different values, a qfuse.quantize result and a qfuse.quantize result; share one quantized input}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// A pre-scale of the input (AWQ's) on one side.
// CHECK-LABEL: func.func @pre_scale
// CHECK-NOT:     "qfuse.concat"
// CHECK:         "qfuse.glu"
!x = tensor<?x512xbf16>
!w = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @pre_scale(%x: !x, %s: tensor<512xbf16>, %g: !w, %u: !w) -> !y {
  %a = "qfuse.mul"(%x, %s) : (!x, tensor<512xbf16>) -> !x
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%a, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{the products read different values, argument 0 and a qfuse.mul result; share one quantized input}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// The same pre-scale on both sides is one input.
// CHECK-LABEL: func.func @pre_scale_of_both
// CHECK:         "qfuse.mul"
// CHECK:         "qfuse.concat"
// CHECK-NOT:     "qfuse.glu"
!x = tensor<?x512xbf16>
!w = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @pre_scale_of_both(%x: !x, %s: tensor<512xbf16>, %g: !w, %u: !w) -> !y {
  %a = "qfuse.mul"(%x, %s) : (!x, tensor<512xbf16>) -> !x
  %0 = "qfuse.matmul"(%a, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%a, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Results of two types would be rounded twice.
// CHECK-LABEL: func.func @result_types
// CHECK-NOT:     "qfuse.concat"
// CHECK:         "qfuse.glu"
!x = tensor<?x512xbf16>
!w = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "none", "row_major">>
!y = tensor<?x200xbf16>
!z = tensor<?x200xf32>
func.func @result_types(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !z
  %c = "qfuse.cast"(%1) : (!z) -> !y
  // expected-remark @+1 {{up is made by qfuse.cast, not by a product}}
  %2 = "qfuse.glu"(%0, %c) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Each layer for itself: what the second one lacks does not keep the first from being merged.
// CHECK-LABEL: func.func @layers_differ
// CHECK-COUNT-1: "qfuse.concat"
// CHECK-NOT:     "qfuse.concat"
// CHECK:         "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!y = tensor<?x512xbf16>
!q4 = !qfuse.qtensor<tensor<512x512xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">>
!q6 = !qfuse.qtensor<tensor<512x512xi6>, #qfuse.scheme<array<i64: 1, 256>, i8, "q6_k", "none", "row_major">>
func.func @layers_differ(%x: !x, %g0: !q4, %u0: !q4, %g1: !q4, %u1: !q6) -> !y {
  %0 = "qfuse.matmul"(%x, %g0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !q4) -> !y
  %1 = "qfuse.matmul"(%x, %u0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !q4) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  %z = "qfuse.quantize"(%2) : (!y) -> !x
  %3 = "qfuse.matmul"(%z, %g1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !q4) -> !y
  %4 = "qfuse.matmul"(%z, %u1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !q6) -> !y
  // expected-remark @+1 {{gate-up: refused at qfuse.glu: weights are stored as i4 and i6}}
  %5 = "qfuse.glu"(%3, %4) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %5 : !y
}
