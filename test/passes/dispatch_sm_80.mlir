// RUN: qfuse-opt --qfuse-dispatch='target=cuda:sm_80 blas=on' --split-input-file --verify-diagnostics --remarks %s

// Before FP8: plain products alone go to cuBLAS.

// As everywhere.
func.func @plain(%x: tensor<?x2048xf16>, %w: tensor<4096x2048xf16>) -> tensor<?x4096xf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{dispatch-plain: refused at qfuse.matmul: M = 1: M is 1; M >= 2}}
  // expected-remark @+1 {{M >= 2 to cuBLAS (mm) by plain}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xf16>, tensor<4096x2048xf16>) -> tensor<?x4096xf16>
  return %0 : tensor<?x4096xf16>
}

// -----

// cublasLt has blocks on architecture 9.x.
func.func @fp8_blocks(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-fp8-blocks: refused at qfuse.matmul: M >= 2: the target is cuda:sm_80; CUDA of architecture 9.x, with cublasLt 12.9 or later}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// Rows from 8.9 on.
func.func @fp8_rows(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-fp8-rows: refused at qfuse.matmul: M >= 2: the target is cuda:sm_80; CUDA of architecture 8.9 or later}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}
