// Each function runs before and after the pass in the reference interpreter.
// RUN: qfuse-opt --qfuse-fuse-epilogue --verify-fusion --split-input-file %s 2>&1 | filecheck %s
// RUN: not qfuse-opt --verify-fusion-seed=x --cse %s 2>&1 | filecheck %s --check-prefix=SEED
// SEED: qfuse-opt: error: argument --verify-fusion-seed: invalid int value: 'x'

// What the reference cannot execute is said, with the operation and where it is.
// CHECK: verify_fusion.mlir: verify-fusion: qfuse-fuse-epilogue of @loop is not verified: the reference does not execute arith.constant, at loc({{.*}})
// CHECK: verify_fusion.mlir: verify-fusion: 3 values are the same before and after a pass
// CHECK-LABEL: func.func @bias
// CHECK:         arith.addf
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!w = !qfuse.qtensor<tensor<40x72xf8E4M3FN>, #weight>
func.func @bias(%x: tensor<?x72xbf16>, %w: !w, %b: tensor<40xbf16>) -> tensor<?x40xbf16> {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 40>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x72xbf16>, !w) -> tensor<?x40xbf16>
  %1 = "qfuse.add"(%0, %b) : (tensor<?x40xbf16>, tensor<40xbf16>) -> tensor<?x40xbf16>
  return %1 : tensor<?x40xbf16>
}

// -----

func.func @loop(%x: tensor<4x8xf32>) -> tensor<4x8xf32> {
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  %y = scf.for %i = %zero to %one step %one iter_args(%a = %x) -> tensor<4x8xf32> {
    %b = "qfuse.relu"(%a) : (tensor<4x8xf32>) -> tensor<4x8xf32>
    scf.yield %b : tensor<4x8xf32>
  }
  return %y : tensor<4x8xf32>
}
