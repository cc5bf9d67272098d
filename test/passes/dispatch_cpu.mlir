// RUN: qfuse-opt --qfuse-dispatch='target=cpu blas=on' --split-input-file --verify-diagnostics --remarks %s

// On the CPU products are ours, for any number of rows, unless oneDNN was measured to be faster; asked
// for or not.

// Without a bias it could be,
func.func @bare(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16>) -> tensor<?x4096xbf16> {
  // expected-remark @+2 {{any M to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-plain-on-the-cpu: refused at qfuse.matmul: any M: nothing was measured of it (qfuse tune); the call is measured to be faster}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// but not with one.
func.func @plain(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16>, %e: tensor<4096xbf16>) -> tensor<?x4096xbf16> {
  // expected-remark @+2 {{any M to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-plain-on-the-cpu: refused at qfuse.matmul: any M: the epilogue has bias; there is no epilogue, no bias either}}
  %0 = "qfuse.matmul"(%x, %w, %e) ({
  ^bb0(%acc: f32, %b: f32):
    %s = arith.addf %acc, %b : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>, tensor<4096xbf16>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// Quantized ones.
func.func @fp8(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+2 {{any M to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-fp8-blocks: refused at qfuse.matmul: any M: the target is cpu}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// As on GPUs.
func.func @int4(%x: tensor<?x2048xbf16>, %w: !qfuse.qtensor<tensor<4096x2048xi4>, #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+2 {{any M to our kernel by fused-dequantize}}
  // expected-remark @+1 {{dispatch-plain-on-the-cpu: refused at qfuse.matmul: any M: the scheme is bf16 by int4 group 32}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, !qfuse.qtensor<tensor<4096x2048xi4>, #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}
