// RUN: qfuse-opt --qfuse-dispatch='target=cuda:sm_90 blas=off' --split-input-file --verify-diagnostics --remarks %s

// Switched off, every product is ours, and says what it would take.

// The switch is the one condition that fails.
func.func @plain(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16>) -> tensor<?x4096xbf16> {
  // expected-remark @+3 {{M = 1 to our kernel by single-row}}
  // expected-remark @+2 {{M >= 2 to our kernel by own-kernel}}
  // expected-remark @+1 {{dispatch-plain: refused at qfuse.matmul: M >= 2: they are off (blas=off); library products are on}}
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xbf16>
  return %0 : tensor<?x4096xbf16>
}
