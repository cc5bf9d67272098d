// RUN: qfuse-opt --qfuse-fuse-gate-up --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-gate-up --split-input-file --verify-diagnostics %s

// Biases that both sides add come along.

// Each side is rounded, gets its bias and is rounded again, as apart.
// CHECK-LABEL: func.func @both_sides
// CHECK-SAME:    %[[B:[^:]+]]: tensor<200xbf16>, %[[C:[^:]+]]: tensor<200xbf16>
// CHECK:         "qfuse.matmul"(%{{[^,]+}}, %{{[^,]+}}, %[[B]], %[[C]])
// CHECK-NEXT:    ^bb0(%[[GATE:.+]]: f32, %[[UP:.+]]: f32, %[[GB:.+]]: f32, %[[UB:.+]]: f32):
// CHECK:           %[[G16:.+]] = arith.truncf %[[GATE]] : f32 to bf16
// CHECK:           %[[G32:.+]] = arith.extf %[[G16]]
// CHECK:           %[[GS:.+]] = arith.addf %[[G32]], %[[GB]]
// CHECK:           arith.truncf %[[GS]] : f32 to bf16
// CHECK:           %[[US:.+]] = arith.addf %{{.+}}, %[[UB]]
// CHECK:           arith.truncf %[[US]] : f32 to bf16
// CHECK:           math.exp
// CHECK:         maps = ["[N]", "[N]"]
// CHECK-NOT:     "qfuse.add"
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
!z = tensor<?x200xf32>
func.func @both_sides(%x: !x, %g: !w, %u: !w, %b: tensor<200xbf16>, %c: tensor<200xbf16>) -> (!y) {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %3 = "qfuse.add"(%0, %b) : (!y, tensor<200xbf16>) -> !y
  %4 = "qfuse.add"(%1, %c) : (!y, tensor<200xbf16>) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 4 launches}}
  %5 = "qfuse.glu"(%3, %4) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %5 : !y
}

// -----

// The operands of an add may come in either order.
// CHECK-LABEL: func.func @bias_first
// CHECK:         maps = ["[N]", "[N]"]
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
!z = tensor<?x200xf32>
func.func @bias_first(%x: !x, %g: !w, %u: !w, %b: tensor<200xbf16>, %c: tensor<200xbf16>) -> (!y) {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %3 = "qfuse.add"(%b, %0) : (tensor<200xbf16>, !y) -> !y
  %4 = "qfuse.add"(%1, %c) : (!y, tensor<200xbf16>) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 4 launches}}
  %5 = "qfuse.glu"(%3, %4) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %5 : !y
}

// -----

// Up's, too.
// CHECK-LABEL: func.func @bias_last
// CHECK:         maps = ["[N]", "[N]"]
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
!z = tensor<?x200xf32>
func.func @bias_last(%x: !x, %g: !w, %u: !w, %b: tensor<200xbf16>, %c: tensor<200xbf16>) -> (!y) {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %3 = "qfuse.add"(%b, %0) : (tensor<200xbf16>, !y) -> !y
  %4 = "qfuse.add"(%c, %1) : (tensor<200xbf16>, !y) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 4 launches}}
  %5 = "qfuse.glu"(%3, %4) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %5 : !y
}

// -----

// A bias of a wider type promotes: the sums are not rounded to bf16, and neither is the GLU.
// CHECK-LABEL: func.func @bias_in_f32
// CHECK:           %[[SUM:.+]] = arith.addf
// CHECK-NOT:       arith.truncf %[[SUM]]
// CHECK:         maps = ["[N]", "[]"]
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
!z = tensor<?x200xf32>
func.func @bias_in_f32(%x: !x, %g: !w, %u: !w, %b: tensor<200xf32>, %c: tensor<1xf32>) -> (!z) {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %3 = "qfuse.add"(%0, %b) : (!y, tensor<200xf32>) -> !z
  %4 = "qfuse.add"(%1, %c) : (!y, tensor<1xf32>) -> !z
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 4 launches}}
  %5 = "qfuse.glu"(%3, %4) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!z, !z) -> !z
  return %5 : !z
}

// -----

// The biased gate is wanted by itself.
// CHECK-LABEL: func.func @sum_read_elsewhere
// CHECK-NOT:     "qfuse.concat"
// CHECK:         "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
!z = tensor<?x200xf32>
func.func @sum_read_elsewhere(%x: !x, %g: !w, %u: !w, %b: tensor<200xbf16>, %c: tensor<200xbf16>) -> (!y, !y) {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: refused at qfuse.add: gate or up has another reader; let the GLU alone read them}}
  %3 = "qfuse.add"(%0, %b) : (!y, tensor<200xbf16>) -> !y
  %4 = "qfuse.add"(%1, %c) : (!y, tensor<200xbf16>) -> !y
  %5 = "qfuse.glu"(%3, %4) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %5, %3 : !y, !y
}

// -----

// What differs from row to row is no bias.
// CHECK-LABEL: func.func @residuals
// CHECK-NOT:     "qfuse.concat"
// CHECK:         "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
!z = tensor<?x200xf32>
func.func @residuals(%x: !x, %g: !w, %u: !w, %b: !y, %c: !y) -> (!y) {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %3 = "qfuse.add"(%0, %b) : (!y, !y) -> !y
  %4 = "qfuse.add"(%1, %c) : (!y, !y) -> !y
  // expected-remark @+1 {{gate is made by qfuse.add, not by a product}}
  %5 = "qfuse.glu"(%3, %4) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %5 : !y
}
