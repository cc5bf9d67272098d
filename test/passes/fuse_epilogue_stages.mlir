// RUN: qfuse-opt --qfuse-fuse-epilogue=stages=bias,activation --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-epilogue=stages=bias,activation --split-input-file --verify-diagnostics %s
// RUN: not qfuse-opt --qfuse-fuse-epilogue=stages=biass %s 2>&1 | filecheck %s --check-prefix BAD
// BAD: qfuse-fuse-epilogue: no stage 'biass'; stages are bias, activation, residual-binary, residual-unary

// bias and activation join, the residual does not.
// CHECK-LABEL: func.func @stages_that_are_on
// CHECK:         maps = ["[N]"]
// CHECK:         "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @stages_that_are_on(%x: !xq, %w: !w, %b: tensor<1400xbf16>, %r: !y) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-bias: fired}}
  %1 = "qfuse.add"(%0, %b) : (!y, tensor<1400xbf16>) -> !y
  // expected-remark @+1 {{epilogue-activation: fired}}
  %2 = "qfuse.silu"(%1) : (!y) -> !y
  // expected-remark @+1 {{refused at qfuse.add: stage residual-binary is switched off; add it to qfuse-fuse-epilogue=stages}}
  %3 = "qfuse.add"(%2, %r) : (!y, !y) -> !y
  return %3 : !y
}
