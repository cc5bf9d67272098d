// RUN: qfuse-opt --qfuse-convert-to-cpu %s | filecheck %s

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<512x512xf8E4M3FN>, #weight>

// Two norms that compute the same share a kernel; another eps is another kernel. Weights are packed
// in place: that happens once, not per call.
// CHECK-LABEL: func.func @main
// CHECK-NEXT:    %[[W:.+]] = "qfuse.pack"
// CHECK-NEXT:    %[[A:.+]] = call @rms_norm_0
// CHECK-NEXT:    %[[B:.+]] = call @rms_norm_0(%[[A]]
// CHECK-NEXT:    %[[C:.+]] = call @rms_norm_1(%[[B]]
// CHECK-NEXT:    %[[Q:.+]] = call @quantize_0(%[[C]]
// CHECK-NEXT:    %[[Y:.+]] = call @matmul_0(%[[Q]], %[[W]])
// CHECK-NEXT:    return %[[Y]]
func.func @main(%x: !x, %n: tensor<512xbf16>, %m: tensor<512xbf16>, %d: tensor<512x512xf8E4M3FN>, %s: tensor<4x4xf32>) -> !x {
  %w = "qfuse.pack"(%d, %s) : (tensor<512x512xf8E4M3FN>, tensor<4x4xf32>) -> !w
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  %1 = "qfuse.rms_norm"(%0, %m) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  %2 = "qfuse.rms_norm"(%1, %m) {eps = 1.0e-5 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  %3 = "qfuse.quantize"(%2) : (!x) -> !xq
  %4 = "qfuse.matmul"(%3, %w) ({
  ^bb0(%acc: f32):
    %c = arith.constant 2.0 : f32
    %v = arith.mulf %acc, %c : f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !x
  return %4 : !x
}

// The same types are no same computation, and a name that is taken is not taken again.
// CHECK-LABEL: func.func @silu_0
// CHECK-LABEL: func.func @elementwise
// CHECK-NEXT:    call @silu_1(%arg0)
// CHECK-NEXT:    call @relu_0(%arg0)
// CHECK-NEXT:    call @add_0(%arg0, %arg0)
// CHECK-NEXT:    call @mul_0(%arg0, %arg0)
// CHECK-NEXT:    call @silu_1(%arg0)
func.func @silu_0(%x: !x) -> !x {
  return %x : !x
}
func.func @elementwise(%x: !x) -> (!x, !x, !x, !x, !x) {
  %0 = "qfuse.silu"(%x) : (!x) -> !x
  %1 = "qfuse.relu"(%x) : (!x) -> !x
  %2 = "qfuse.add"(%x, %x) : (!x, !x) -> !x
  %3 = "qfuse.mul"(%x, %x) : (!x, !x) -> !x
  %4 = "qfuse.silu"(%x) : (!x) -> !x
  return %0, %1, %2, %3, %4 : !x, !x, !x, !x, !x
}

// CHECK-DAG:   func.func private @rms_norm_0({{.*}}) -> tensor<?x512xbf16> attributes {qfuse.kernel}
// CHECK-DAG:   func.func private @rms_norm_1({{.*}}) -> tensor<?x512xbf16> attributes {qfuse.kernel}
// CHECK-DAG:   func.func private @quantize_0({{.*}}) -> !qfuse.qtensor{{.*}} attributes {qfuse.kernel}
// CHECK-DAG:   func.func private @matmul_0({{.*}}) -> tensor<?x512xbf16> attributes {qfuse.kernel}
