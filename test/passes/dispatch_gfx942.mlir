// RUN: qfuse-opt --qfuse-dispatch='target=hip:gfx942 blas=on' --split-input-file --verify-diagnostics --remarks %s

// hipBLAS by the same rules.

// Plain products, decided on the shape.
func.func @plain(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{dispatch-plain: refused at qfuse.matmul: M = 1: M is 1; M >= 2}}
  // expected-remark @+1 {{M >= 2 to hipBLAS (mm) by plain}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// Its FP8 is another format than OCP's.
func.func @fp8_rows(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-fp8-rows: refused at qfuse.matmul: M >= 2: the target is hip:gfx942}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// The dequantize is fused here, too.
func.func @int4(%x: tensor<?x2048xf16>, %w: !qfuse.qtensor<tensor<4096x2048xi4>, #qfuse.scheme<array<i64: 1, 128>, f16, "int4", "none", "row_major">>) -> tensor<?x4096xf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by fused-dequantize}}
  // expected-remark @+1 {{refused at qfuse.matmul: M >= 2: the scheme is f16 by int4 group 128}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xf16>, !qfuse.qtensor<tensor<4096x2048xi4>, #qfuse.scheme<array<i64: 1, 128>, f16, "int4", "none", "row_major">>) -> tensor<?x4096xf16>
  return %0 : tensor<?x4096xf16>
}
