// RUN: qfuse-opt --qfuse-dispatch='target=cuda:sm_89 blas=on' --split-input-file --verify-diagnostics --remarks %s

// FP8 with a scale for each row, but no blocks.

// By CUTLASS in torch.
func.func @fp8_rows(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{dispatch-fp8-rows: refused at qfuse.matmul: M = 1: M is 1; M >= 2}}
  // expected-remark @+1 {{M >= 2 to cuBLAS (scaled_mm_rows) by fp8-rows}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// Not here.
func.func @fp8_blocks(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-fp8-blocks: refused at qfuse.matmul: M >= 2: the target is cuda:sm_89}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}
