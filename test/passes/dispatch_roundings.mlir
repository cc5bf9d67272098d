// RUN: qfuse-opt --qfuse-dispatch='target=cuda:sm_90 blas=on roundings=library' --split-input-file --verify-diagnostics --remarks %s

// A library may round a product and its bias once, where that is asked for.

// Refused with roundings=exact.
func.func @rounded_bias(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16>, %e: tensor<4096xbf16>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{dispatch-plain: refused at qfuse.matmul: M = 1: M is 1; M >= 2}}
  // expected-remark @+1 {{M >= 2 to cuBLAS (mm) by plain}}
  %0 = "qfuse.matmul"(%x, %w, %e) ({
  ^bb0(%acc: f32, %b: f32):
    %r = arith.truncf %acc : f32 to bf16
    %x0 = arith.extf %r : bf16 to f32
    %s = arith.addf %x0, %b : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>, tensor<4096xbf16>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}
