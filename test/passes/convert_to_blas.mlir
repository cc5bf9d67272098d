// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cuda:sm_90 blas=on' --qfuse-convert-to-blas | filecheck %s
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=hip:gfx942 blas=on' --qfuse-convert-to-blas | filecheck %s
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cuda:sm_90 blas=on' --qfuse-convert-to-blas --qfuse-convert-to-cpu | filecheck %s --check-prefix OUTLINED
// RUN: qfuse-opt %s --split-input-file --qfuse-convert-to-blas | filecheck %s --check-prefix UNDECIDED

// One row stays with the kernel, more go to the library, and its epilogue with them.
// CHECK-LABEL: func.func @bias
// CHECK-SAME:    %[[X:[^:]+]]: tensor<?x512xbf16>, %[[W:[^:]+]]: tensor<1024x512xbf16>, %[[B:[^:]+]]:
// CHECK:         %[[Y:.+]] = "qfuse.choose"(%[[X]]) ({
// CHECK-NEXT:      %[[L:.+]] = "qfuse.library_call"(%[[X]], %[[W]], %[[B]]) {activation = "none", call = "mm", operandSegmentSizes = array<i32: 1, 1, 0, 1>}
// CHECK-NEXT:      "qfuse.result"(%[[L]])
// CHECK-NEXT:    }, {
// CHECK-NEXT:      %[[K:.+]] = "qfuse.matmul"(%[[X]], %[[W]], %[[B]])
// CHECK-NOT:         qfuse.dispatch
// CHECK:           "qfuse.result"(%[[K]])
// CHECK-NEXT:    }) {call = "mm", ranges = array<i64: 2, -1>}
// CHECK-NEXT:    return %[[Y]]

// The kernel is outlined where it stands.
// OUTLINED-LABEL: func.func @bias
// OUTLINED:         "qfuse.library_call"
// OUTLINED:         func.call @matmul_0
// OUTLINED:         func.func private @matmul_0

// Without decisions nothing changes.
// UNDECIDED-LABEL: func.func @bias
// UNDECIDED-NOT:     qfuse.choose
func.func @bias(%x: tensor<?x512xbf16>, %w: tensor<1024x512xbf16>, %b: tensor<1024xbf16>) -> tensor<?x1024xbf16> {
  %0 = "qfuse.matmul"(%x, %w, %b) ({
  ^bb0(%acc: f32, %v: f32):
    %s = arith.addf %acc, %v : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 1024>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x512xbf16>, tensor<1024x512xbf16>, tensor<1024xbf16>) -> tensor<?x1024xbf16>
  return %0 : tensor<?x1024xbf16>
}

// -----

// A product that is ours for every number of rows stays as it is, with its decisions.
// CHECK-LABEL: func.func @ours
// CHECK-NOT:     "qfuse.choose"
// CHECK:         "qfuse.matmul"
// CHECK:         rule = "fused-dequantize"
#w4 = #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "none", "row_major">
func.func @ours(%x: tensor<?x512xbf16>, %w: !qfuse.qtensor<tensor<1024x512xi4>, #w4>) -> tensor<?x1024xbf16> {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1024>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x512xbf16>, !qfuse.qtensor<tensor<1024x512xi4>, #w4>) -> tensor<?x1024xbf16>
  return %0 : tensor<?x1024xbf16>
}

// -----

// Experts whose rows lie sorted: torch's grouped product, its offsets from indptr.
// CHECK-LABEL: func.func @experts
// CHECK:         "qfuse.library_call"(%{{.*}}, %{{.*}}, %{{.*}}) {activation = "none", call = "grouped_mm", operandSegmentSizes = array<i32: 1, 1, 1, 0>}
func.func @experts(%x: tensor<?x2x512xbf16>, %w: tensor<8x256x512xbf16>, %indptr: tensor<9xi32>) -> tensor<?x2x256xbf16> {
  %0 = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2x512xbf16>, tensor<8x256x512xbf16>, tensor<9xi32>) -> tensor<?x2x256xbf16>
  return %0 : tensor<?x2x256xbf16>
}
