// RUN: qfuse-opt --split-input-file --verify-diagnostics %s

// MLIR checks that values come before their readers only after our verifiers, which therefore see
// values that are computed from themselves.
func.func @epilogue(%x: tensor<?x8xbf16>, %w: tensor<16x8xbf16>) {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32, %p1: f32):
    // expected-error @+1 {{operand #1 does not dominate this use}}
    %0 = arith.addf %p0, %0 : f32
    "qfuse.yield"(%0) : (f32) -> ()
  }) {parts = array<i64: 12, 4>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x8xbf16>, tensor<16x8xbf16>) -> tensor<?x12xbf16>
  return
}

// -----

// With_scale asks who made the value, and who else reads it.
#act = #qfuse.scheme<array<i64: 1, 16>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x16xf8E4M3FN>, #act>
func.func @scale(%x: tensor<?x8xbf16>, %w: tensor<16x8xbf16>, %s: tensor<1xf32>) {
  %y = "qfuse.matmul"(%x, %w, %s) ({
  ^bb0(%acc: f32, %scale: f32):
    // expected-error @+1 {{operand #0 does not dominate this use}}
    %0 = "qfuse.with_scale"(%1, %scale) : (f32, f32) -> f32
    %1 = arith.addf %acc, %acc : f32
    "qfuse.yield"(%0) : (f32) -> ()
  }) {parts = array<i64: 16>, maps = ["[]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x8xbf16>, tensor<16x8xbf16>, tensor<1xf32>) -> !xq
  return
}
