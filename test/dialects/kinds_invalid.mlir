// RUN: qfuse-opt --split-input-file --verify-diagnostics %s

// Operands, results and regions that are not even of the right kind.

func.func @case(%x: tensor<?x8xbf16>, %w: tensor<?x8xbf16>) {
  // expected-error @+1 {{w has shape [?, 8]; a weight is static}}
  %y = "qfuse.library_call"(%x, %w) {call = "mm", activation = "none", operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<?x8xbf16>, tensor<?x8xbf16>) -> tensor<?x16xbf16>
  return
}

// -----

func.func @case(%x: tensor<?x?xbf16>) {
  // expected-error @+1 {{y is tensor<?x?xbf16>; expected a float [.., N] with N known}}
  %y = "qfuse.epilogue"(%x) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 16>, starts = array<i64: 0>, maps = [], operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x?xbf16>) -> tensor<?x16xbf16>
  return
}

// -----

func.func @case(%x: tensor<?x8xbf16>, %w: tensor<16x8xbf16>) {
  // expected-error @+1 {{the epilogue region must end with qfuse.yield}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %0 = arith.negf %acc : f32
  }) {parts = array<i64: 16>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x8xbf16>, tensor<16x8xbf16>) -> tensor<?x16xbf16>
  return
}

// -----

func.func @case(%x: tensor<?x8xbf16>, %w: !qfuse.qtensor<tensor<16x8xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 8>, i8, "none", "none", "row_major">>) {
  // expected-error @+1 {{w: scale type i8 does not go with f8E4M3FN}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 16>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x8xbf16>, !qfuse.qtensor<tensor<16x8xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 8>, i8, "none", "none", "row_major">>) -> tensor<?x16xbf16>
  return
}

// -----

func.func @case(%g: tensor<?x8xf64>) {
  // expected-error @+1 {{operand element type f64 is not f32, f16 or bf16}}
  %y = "qfuse.glu"(%g, %g) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x8xf64>, tensor<?x8xf64>) -> tensor<?x8xf64>
  return
}

// -----

func.func @case(%g: tensor<?x8xbf16>) {
  // expected-error @+1 {{scale type i8 does not go with f8E4M3FN}}
  %y = "qfuse.glu"(%g, %g) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 0, 1>} : (tensor<?x8xbf16>, tensor<?x8xbf16>) -> !qfuse.qtensor<tensor<?x8xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 8>, i8, "none", "none", "row_major">>
  return
}

// -----

func.func @case(%x: tensor<?x64xbf16>) {
  // expected-error @+1 {{the scales of packing "q8_1" lie row_major}}
  %y = "qfuse.quantize"(%x) : (tensor<?x64xbf16>) -> !qfuse.qtensor<tensor<?x64xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "col_major">>
  return
}

// -----

func.func @case(%x: tensor<?x8xbf16>, %y: tensor<?x16xbf16>) {
  // expected-error @+1 {{each region ends with qfuse.result}}
  %0 = "qfuse.choose"(%x) ({
    "qfuse.result"(%y) : (tensor<?x16xbf16>) -> ()
  }, {
    %1 = arith.constant 0.0 : f32
  }) {call = "mm", ranges = array<i64: 1, 2>} : (tensor<?x8xbf16>) -> tensor<?x16xbf16>
  return
}
