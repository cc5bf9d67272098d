// RUN: qfuse-opt --qfuse-dispatch='target=cuda:sm_90' --split-input-file --verify-diagnostics --remarks %s

// By default a call must be estimated faster.

// For this shape the model prefers the library for few rows and ours for many, and says by how much.
func.func @plain(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16>) -> tensor<?x4096xbf16> {
  // expected-remark @+5 {{M = 1 to our kernel by single-row}}
  // expected-remark @+4 {{dispatch-plain: refused at qfuse.matmul: M = 1: M is 1; M >= 2}}
  // expected-remark @+3 {{M 2..256 to cuBLAS (mm) by plain: an unquantized product, with an epilogue that the library has; at M = 16 estimated}}
  // expected-remark @+2 {{M >= 257 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-plain: refused at qfuse.matmul: M >= 257: at M = 8192 estimated}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// What no estimate knows is used only where it is asked for, or measured.
func.func @int8(%x: !qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+4 {{M = 1 to our kernel by single-row}}
  // expected-remark @+3 {{dispatch-int8: refused at qfuse.matmul: M = 1: M is 1; M >= 17}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-int8: refused at qfuse.matmul: M >= 2: there is no estimate for it, and no measurement (qfuse tune); the call is faster, or asked for (blas=on)}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}
