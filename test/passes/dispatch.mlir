// RUN: qfuse-opt --qfuse-dispatch='target=cuda:sm_90 blas=on' --split-input-file --verify-diagnostics --remarks %s

// Rules and guards where library products are used wherever there is one.

// An unquantized product is the library's, but for one row.
func.func @plain(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{dispatch-plain: refused at qfuse.matmul: M = 1: M is 1; M >= 2}}
  // expected-remark @+1 {{M >= 2 to cuBLAS (mm) by plain: an unquantized product}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// A bias and relu go with it; relu of the rounded value is the rounded relu.
func.func @plain_bias_relu(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16>, %e: tensor<4096xbf16>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{dispatch-plain: refused at qfuse.matmul: M = 1: M is 1; M >= 2}}
  // expected-remark @+1 {{M >= 2 to cuBLAS (mm) by plain}}
  %0 = "qfuse.matmul"(%x, %w, %e) ({
  ^bb0(%acc: f32, %b: f32):
    %z = arith.constant 0.0 : f32
    %s = arith.addf %b, %acc : f32
    %r = arith.truncf %s : f32 to bf16
    %x0 = arith.extf %r : bf16 to f32
    %m = arith.maximumf %x0, %z : f32
    "qfuse.yield"(%m) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>, tensor<4096xbf16>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// f32, too.
func.func @f32(%x: tensor<?x2048xf32>, %w: tensor<4096x2048xf32>) -> tensor<?x4096xf32> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{dispatch-plain: refused at qfuse.matmul: M = 1: M is 1; M >= 2}}
  // expected-remark @+1 {{M >= 2 to cuBLAS (mm) by plain}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xf32>, tensor<4096x2048xf32>) -> tensor<?x4096xf32>
  return %0 : tensor<?x4096xf32>
}

// -----

// A library product has one type.
func.func @promoted(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16>) -> tensor<?x4096xf32> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{refused at qfuse.matmul: M >= 2: the scheme is bf16 by bf16, the result f32}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xf32>
  return %0 : tensor<?x4096xf32>
}

// -----

// A residual is none of the library's epilogues.
func.func @residual(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16>, %e: tensor<?x4096xbf16>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-plain: refused at qfuse.matmul: M >= 2: the epilogue has a residual; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh}}
  %0 = "qfuse.matmul"(%x, %w, %e) ({
  ^bb0(%acc: f32, %b: f32):
    %s = arith.addf %acc, %b : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = ["[M,N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>, tensor<?x4096xbf16>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// The library would add the bias before it rounds.
func.func @rounded_bias(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16>, %e: tensor<4096xbf16>) -> tensor<?x4096xbf16> {
  // expected-remark @+8 {{M = 1 to our kernel by single-row}}
  // expected-remark @+7 {{M 2..64 to our kernel by own-kernel}}
  // expected-remark @+6 {{dispatch-plain: refused at qfuse.matmul: M 2..64: the product is rounded before its bias (roundings=library allows)}}
  // expected-remark @+5 {{dispatch-plain-apart: refused at qfuse.matmul: M 2..64: at M = 64 estimated}}
  // expected-remark @+4 {{M 65..256 to cuBLAS (mm, epilogue apart) by plain-apart: an unquantized product, its epilogue in a kernel that follows; at M = 256 estimated}}
  // expected-remark @+3 {{M >= 257 to our kernel by own-kernel}}
  // expected-remark @+2 {{dispatch-plain: refused at qfuse.matmul: M >= 257: the product is rounded before its bias (roundings=library allows)}}
  // expected-remark @+1 {{dispatch-plain-apart: refused at qfuse.matmul: M >= 257: at M = 8192 estimated}}
  %0 = "qfuse.matmul"(%x, %w, %e) ({
  ^bb0(%acc: f32, %b: f32):
    %r = arith.truncf %acc : f32 to bf16
    %x0 = arith.extf %r : bf16 to f32
    %s = arith.addf %x0, %b : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>, tensor<4096xbf16>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// Blocks are cublasLt's on this architecture.
func.func @fp8_blocks(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{dispatch-fp8-blocks: refused at qfuse.matmul: M = 1: M is 1; M >= 2}}
  // expected-remark @+1 {{M >= 2 to cuBLAS (scaled_mm_blocks) by fp8-blocks}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// Scales that lie row by row would have to be copied.
func.func @fp8_blocks_row_major(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-fp8-blocks: refused at qfuse.matmul: M >= 2: the scales of x lie row by row (qfuse-choose-scale-layout)}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// N and K are multiples of 16.
func.func @fp8_ragged(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<1400x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x1400xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-fp8-blocks: refused at qfuse.matmul: M >= 2: N x K is 1400 x 2048; N and K are multiples of 16}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<1400x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x1400xbf16>
  return %0 : tensor<?x1400xbf16>
}

// -----

// Results are bf16 or f16.
func.func @fp8_f32_result(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xf32> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-fp8-blocks: refused at qfuse.matmul: M >= 2: it is f32; the result is bf16 or f16}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xf32>
  return %0 : tensor<?x4096xf32>
}

// -----

// One scale for each row of x and of w.
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

// hipBLASLt and CUTLASS make bf16.
func.func @fp8_rows_f16(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-fp8-rows: refused at qfuse.matmul: M >= 2: it is f16; the result is bf16}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xf16>
  return %0 : tensor<?x4096xf16>
}

// -----

// torch._int_mm takes more than 16 rows.
func.func @int8(%x: !qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+5 {{M = 1 to our kernel by single-row}}
  // expected-remark @+4 {{dispatch-int8: refused at qfuse.matmul: M = 1: M is 1; M >= 17}}
  // expected-remark @+3 {{M 2..16 to our kernel by own-kernel}}
  // expected-remark @+2 {{dispatch-int8: refused at qfuse.matmul: M 2..16: M is 2 to 16; M >= 17}}
  // expected-remark @+1 {{M >= 17 to cuBLAS (int_mm) by int8}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// K and N are multiples of 4.
func.func @int8_ragged(%x: !qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4098x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4098xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-int8: refused at qfuse.matmul: M >= 2: N x K is 4098 x 2048; N and K are multiples of 4}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4098>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4098x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4098xbf16>
  return %0 : tensor<?x4098xbf16>
}

// -----

// There is no bias for i8.
func.func @int8_bias(%x: !qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %e: tensor<4096xbf16>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-int8: refused at qfuse.matmul: M >= 2: the epilogue has bias; there is no epilogue, no bias either}}
  %0 = "qfuse.matmul"(%x, %w, %e) ({
  ^bb0(%acc: f32, %b: f32):
    %s = arith.addf %acc, %b : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, tensor<4096xbf16>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// Enabled, and yet no cuBLAS: the reason is in one line.
func.func @int4(%x: tensor<?x2048xbf16>, %w: !qfuse.qtensor<tensor<4096x2048xi4>, #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by fused-dequantize: the dequantize is fused: a library would need the weight expanded in memory first}}
  // expected-remark @+1 {{refused at qfuse.matmul: M >= 2: the scheme is bf16 by int4 group 32}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, !qfuse.qtensor<tensor<4096x2048xi4>, #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// The same for K-quants.
func.func @q4_k(%x: !qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by fused-dequantize}}
  // expected-remark @+1 {{refused at qfuse.matmul: M >= 2: the scheme is q8_1 by q4_k}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// And for i8 weights of plain activations.
func.func @w8a16(%x: tensor<?x2048xbf16>, %w: !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by fused-dequantize}}
  // expected-remark @+1 {{refused at qfuse.matmul: M >= 2: the scheme is bf16 by i8 per row}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}

// -----

// Whatever the function is called: one row is one row.
func.func @one_row(%x: tensor<1x2048xbf16>, %w: tensor<4096x2048xbf16>) -> tensor<1x4096xbf16> {
  // expected-remark @+2 {{M = 1 to our kernel by single-row}}
  // expected-remark @+1 {{dispatch-plain: refused at qfuse.matmul: M = 1: M is 1; M >= 2}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<1x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<1x4096xbf16>
  return %0 : tensor<1x4096xbf16>
}

// -----

// And sixteen are sixteen.
func.func @batch_decode(%x: tensor<16x2048xbf16>, %w: tensor<4096x2048xbf16>) -> tensor<16x4096xbf16> {
  // expected-remark @+1 {{M = 16 to cuBLAS (mm) by plain}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<16x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<16x4096xbf16>
  return %0 : tensor<16x4096xbf16>
}
