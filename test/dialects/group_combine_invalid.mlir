// RUN: qfuse-opt --split-input-file --verify-diagnostics %s

// What the verifier of qfuse.group_matmul_combine refuses, with its message.

// A place for each choice of each token.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?xi32>, %f: tensor<?x8xf32>) {
  // expected-error @+1 {{slots are tensor<?xi32>; expected i32 [T, k]}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?xi32>, tensor<?x8xf32>) -> tensor<?x256xbf16>
  return
}

// -----

// Places are 32-bit.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x8xi64>, %f: tensor<?x8xf32>) {
  // expected-error @+1 {{slots are tensor<?x8xi64>; expected tensor<?x8xi32>}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi64>, tensor<?x8xf32>) -> tensor<?x256xbf16>
  return
}

// -----

// x has the rows that the slots lead to.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x4x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x8xi32>, %f: tensor<?x8xf32>) {
  // expected-error @+1 {{x has shape [?, 4, 192]; without tokens its rows are [?, 8]}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x4x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>, tensor<?x8xf32>) -> tensor<?x256xbf16>
  return
}

// -----

// Or it has the tokens.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<5x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<4x8xi32>, %f: tensor<4x8xf32>, %t: tensor<4x8xi32>) {
  // expected-error @+1 {{x has shape [5, 192]; with tokens [4, 8] it has [4] rows}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f, %t) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<5x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<4x8xi32>, tensor<4x8xf32>, tensor<4x8xi32>) -> tensor<4x256xbf16>
  return
}

// -----

// Tokens and slots are of the same choices.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x8xi32>, %f: tensor<?x8xf32>, %t: tensor<?x4xi32>) {
  // expected-error @+1 {{tokens are tensor<?x4xi32>; expected i32 [?, 8], as the rows}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f, %t) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>, tensor<?x8xf32>, tensor<?x4xi32>) -> tensor<?x256xbf16>
  return
}

// -----

// All choices count, or all but a shared expert.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x8xi32>, %f: tensor<?x6xf32>) {
  // expected-error @+1 {{weights are tensor<?x6xf32>; expected a float [?, 8], or with a shared expert [?, 7]}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>, tensor<?x6xf32>) -> tensor<?x256xbf16>
  return
}

// -----

// Weights are floats.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x8xi32>, %f: tensor<?x8xi32>) {
  // expected-error @+1 {{weights are tensor<?x8xi32>; expected a float [?, 8]}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>, tensor<?x8xi32>) -> tensor<?x256xbf16>
  return
}

// -----

// A shared expert is not alone.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x1x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x1xi32>, %f: tensor<?x0xf32>) {
  // expected-error @+1 {{weights are tensor<?x0xf32>; expected a float [?, 1]}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x1x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x1xi32>, tensor<?x0xf32>) -> tensor<?x256xbf16>
  return
}

// -----

// The result has the tokens, not the rows.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<3x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<3x8xi32>, %f: tensor<3x8xf32>) {
  // expected-error @+1 {{the result is tensor<3x8x256xbf16>; expected a float [3, 256]}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<3x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<3x8xi32>, tensor<3x8xf32>) -> tensor<3x8x256xbf16>
  return
}

// -----

// It is as wide as a part.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x8xi32>, %f: tensor<?x8xf32>) {
  // expected-error @+1 {{result 0 is 128 wide, but the parts of w are [256]}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>, tensor<?x8xf32>) -> tensor<?x128xbf16>
  return
}

// -----

// It is a matrix.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x8xi32>, %f: tensor<?x8xf32>) {
  // expected-error @+1 {{the result is tensor<bf16>; expected a float [T, N]}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>, tensor<?x8xf32>) -> tensor<bf16>
  return
}

// -----

// Sums are not quantized.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x8xi32>, %f: tensor<?x8xf32>) {
  // expected-error @+1 {{"row_major">>; expected a float [?, 256]}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>, tensor<?x8xf32>) -> !qfuse.qtensor<tensor<?x256xf8E4M3FN>, #act>
  return
}

// -----

// The residual is like the result.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x8xi32>, %f: tensor<?x8xf32>, %r: tensor<?x256xf32>) {
  // expected-error @+1 {{the residual is tensor<?x256xf32>; expected tensor<?x256xbf16>, as the result}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f, %r) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>, tensor<?x8xf32>, tensor<?x256xf32>) -> tensor<?x256xbf16>
  return
}

// -----

// Extra operands are those of rows, not of tokens.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x8xi32>, %f: tensor<?x8xf32>, %e: tensor<?x256xbf16>) {
  // expected-error @+1 {{extra operand 0 has shape [?, 256], which does not fit its map "[M,N]" over [?, 8, 256]}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f, %e) ({
  ^bb0(%a0: f32, %b: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = ["[M,N]"], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>, tensor<?x8xf32>, tensor<?x256xbf16>) -> tensor<?x256xbf16>
  return
}

// -----

// A row is one value for each column.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x512x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x8xi32>, %f: tensor<?x8xf32>) {
  // expected-error @+1 {{yields 2 values for 1 results}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32, %a1: f32):
    "qfuse.yield"(%a0, %a1) : (f32, f32) -> ()
  }) {parts = array<i64: 256, 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x512x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>, tensor<?x8xf32>) -> tensor<?x256xbf16>
  return
}

// -----

// The prefix is of these experts.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<9xi32>, %s: tensor<?x8xi32>, %f: tensor<?x8xf32>) {
  // expected-error @+1 {{indptr is tensor<9xi32>; expected tensor<17xi32>}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<9xi32>, tensor<?x8xi32>, tensor<?x8xf32>) -> tensor<?x256xbf16>
  return
}

// -----

// The weights of all experts are one tensor.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x8xi32>, %f: tensor<?x8xf32>) {
  // expected-error @+1 {{w has shape [256, 192]; weights of experts are a static [E, N, K]}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>, tensor<?x8xf32>) -> tensor<?x256xbf16>
  return
}

// -----

// Slots and weights are always there.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, %i: tensor<17xi32>, %s: tensor<?x8xi32>, %f: tensor<?x8xf32>) {
  // expected-error @+1 {{operandSegmentSizes is array<i32: 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0>; expected 0 or 1}}
  %y = "qfuse.group_matmul_combine"(%x, %w, %i, %s, %f) ({
  ^bb0(%a0: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>, tensor<?x8xf32>) -> tensor<?x256xbf16>
  return
}
