// RUN: qfuse-opt --qfuse-fuse-epilogue=stages=bias %s | filecheck %s --check-prefix BIAS
// RUN: qfuse-opt --qfuse-fuse-epilogue=stages=activation %s | filecheck %s --check-prefix ACTIVATION
// RUN: qfuse-opt --qfuse-fuse-epilogue=stages=residual-binary %s | filecheck %s --check-prefix BINARY
// RUN: qfuse-opt --qfuse-fuse-epilogue=stages=residual-binary,residual-unary %s | filecheck %s --check-prefix UNARY
// RUN: qfuse-opt --qfuse-fuse-epilogue=stages=residual-unary %s | filecheck %s --check-prefix NONE
// RUN: qfuse-opt --qfuse-fuse-epilogue=stages=bias,activation,residual-binary,residual-unary %s | filecheck %s --check-prefix ALL

// Each stage is an option of its own; one that is off keeps what follows it apart, too.

// BIAS-NOT:       "qfuse.add"(%{{.*}}) : (tensor<?x512xbf16>, tensor<512xbf16>)
// BIAS:           "qfuse.silu"
// BIAS:           "qfuse.mul"
// BIAS:           "qfuse.relu"

// ACTIVATION:     "qfuse.add"(%{{.*}}) : (tensor<?x512xbf16>, tensor<512xbf16>)
// ACTIVATION-NOT: "qfuse.silu"
// ACTIVATION:     "qfuse.mul"
// ACTIVATION:     "qfuse.relu"

// BINARY:         "qfuse.add"
// BINARY:         "qfuse.silu"
// BINARY-NOT:     "qfuse.mul"
// BINARY:         "qfuse.relu"

// UNARY:          "qfuse.add"
// UNARY:          "qfuse.silu"
// UNARY-NOT:      "qfuse.mul"
// UNARY-NOT:      "qfuse.relu"

// NONE:           "qfuse.add"
// NONE:           "qfuse.silu"
// NONE:           "qfuse.mul"
// NONE:           "qfuse.relu"

// ALL-NOT:        "qfuse.add"
// ALL-NOT:        "qfuse.silu"
// ALL-NOT:        "qfuse.mul"
// ALL-NOT:        "qfuse.relu"
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
func.func @stages(%x: !x, %w: !w, %b: tensor<512xbf16>, %r: !x) -> (!x, !x, !x) {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !x
  %1 = "qfuse.add"(%0, %b) : (!x, tensor<512xbf16>) -> !x
  %2 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !x
  %3 = "qfuse.silu"(%2) : (!x) -> !x
  %4 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !x
  %5 = "qfuse.mul"(%r, %4) : (!x, !x) -> !x
  %6 = "qfuse.relu"(%5) : (!x) -> !x
  return %1, %3, %6 : !x, !x, !x
}
