// RUN: qfuse-opt --qfuse-fuse-epilogue --remarks %s 2>&1 | filecheck %s

// Residuals of what adds up the experts of a token.

// CHECK-DAG: combine-residual: fired at qfuse.add: saves 1 launch, 256 B a row
// CHECK-DAG: combine-residual: refused at qfuse.combine: it adds a residual already
// CHECK-DAG: combine-residual: refused at qfuse.combine: the sum has 2 readers, and the others want it without the residual; give the sum one reader
// CHECK-DAG: combine-residual: refused at qfuse.combine: the residual is tensor<?x64xf32>, the sum tensor<?x64xbf16>
// CHECK-DAG: epilogue-residual-binary: fired at qfuse.add

!y = tensor<?x4x64xbf16>
!s = tensor<?x4xi32>
!w = tensor<?x4xf32>
!x = tensor<?x64xbf16>

// CHECK-LABEL: func.func @residual
// CHECK:         %[[R:.+]] = "qfuse.combine"(%arg0, %arg1, %arg2, %arg3) {operandSegmentSizes = array<i32: 1, 1, 1, 1>}
// CHECK-NEXT:    return %[[R]]
func.func @residual(%y: !y, %slots: !s, %weights: !w, %residual: !x) -> !x {
  %sum = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !s, !w) -> !x
  %out = "qfuse.add"(%residual, %sum) : (!x, !x) -> !x
  return %out : !x
}

// The product of the shared experts takes the sum, and then the residual: no add is left.
// CHECK-LABEL: func.func @shared_experts
// CHECK:         %[[S:.+]] = "qfuse.combine"(%arg0, %arg1, %arg2) {operandSegmentSizes = array<i32: 1, 1, 1, 0>}
// CHECK-NEXT:    %[[R:.+]] = "qfuse.matmul"(%arg3, %arg4, %[[S]], %arg5)
// CHECK:         maps = ["[M,N]", "[M,N]"]
// CHECK-NOT:     qfuse.add
// CHECK:         return %[[R]]
func.func @shared_experts(%y: !y, %slots: !s, %weights: !w, %h: tensor<?x32xbf16>, %down: tensor<64x32xbf16>, %residual: !x) -> !x {
  %sum = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !s, !w) -> !x
  %shared = "qfuse.matmul"(%h, %down) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 64>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x32xbf16>, tensor<64x32xbf16>) -> !x
  %all = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  %out = "qfuse.add"(%residual, %all) : (!x, !x) -> !x
  return %out : !x
}

// A second residual has no place.
// CHECK-LABEL: func.func @two_residuals
// CHECK:         %[[S:.+]] = "qfuse.combine"(%arg0, %arg1, %arg2, %arg3)
// CHECK-NEXT:    "qfuse.add"(%[[S]], %arg4)
func.func @two_residuals(%y: !y, %slots: !s, %weights: !w, %a: !x, %b: !x) -> !x {
  %sum = "qfuse.combine"(%y, %slots, %weights, %a) {operandSegmentSizes = array<i32: 1, 1, 1, 1>} : (!y, !s, !w, !x) -> !x
  %out = "qfuse.add"(%sum, %b) : (!x, !x) -> !x
  return %out : !x
}

// Somebody else reads the sum.
// CHECK-LABEL: func.func @two_readers
// CHECK:         %[[S:.+]] = "qfuse.combine"(%arg0, %arg1, %arg2) {operandSegmentSizes = array<i32: 1, 1, 1, 0>}
// CHECK-NEXT:    %[[R:.+]] = "qfuse.add"(%[[S]], %arg3)
// CHECK-NEXT:    return %[[S]], %[[R]]
func.func @two_readers(%y: !y, %slots: !s, %weights: !w, %a: !x) -> (!x, !x) {
  %sum = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !s, !w) -> !x
  %out = "qfuse.add"(%sum, %a) : (!x, !x) -> !x
  return %sum, %out : !x, !x
}

// A residual of another type would be rounded in between.
// CHECK-LABEL: func.func @other_type
// CHECK:         "qfuse.combine"(%arg0, %arg1, %arg2) {operandSegmentSizes = array<i32: 1, 1, 1, 0>}
// CHECK-NEXT:    "qfuse.add"
func.func @other_type(%y: !y, %slots: !s, %weights: !w, %a: tensor<?x64xf32>) -> tensor<?x64xf32> {
  %sum = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !s, !w) -> !x
  %out = "qfuse.add"(%sum, %a) : (!x, tensor<?x64xf32>) -> tensor<?x64xf32>
  return %out : tensor<?x64xf32>
}
