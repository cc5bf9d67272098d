// RUN: qfuse-opt --split-input-file --verify-diagnostics %s

// What each verifier refuses, with its message.

// There is an expert at least.
func.func @case(%ids: tensor<?x8xi64>) {
  // expected-error @+1 {{num_experts is 0; there must be one at least}}
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 0 : i64} : (tensor<?x8xi64>) -> (tensor<?x8xi32>, tensor<?x8xi32>, tensor<1xi32>)
  return
}

// -----

// How many experts a token chooses is known.
func.func @case(%ids: tensor<?x?xi64>) {
  // expected-error @+1 {{ids are tensor<?x?xi64>; expected whole numbers [T, k] with k known}}
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64} : (tensor<?x?xi64>) -> (tensor<?x8xi32>, tensor<?x8xi32>, tensor<17xi32>)
  return
}

// -----

// Ids are whole numbers.
func.func @case(%ids: tensor<?x8xf32>) {
  // expected-error @+1 {{ids are tensor<?x8xf32>; expected whole numbers [T, k] with k known}}
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64} : (tensor<?x8xf32>) -> (tensor<?x8xi32>, tensor<?x8xi32>, tensor<17xi32>)
  return
}

// -----

// A slot for each choice.
func.func @case(%ids: tensor<?x8xi64>) {
  // expected-error @+1 {{slots are tensor<?x4xi32>; expected tensor<?x8xi32>}}
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64} : (tensor<?x8xi64>) -> (tensor<?x4xi32>, tensor<?x8xi32>, tensor<17xi32>)
  return
}

// -----

// The exclusive prefix has an entry more than there are experts.
func.func @case(%ids: tensor<?x8xi64>) {
  // expected-error @+1 {{indptr is tensor<16xi32>; expected tensor<17xi32>}}
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64} : (tensor<?x8xi64>) -> (tensor<?x8xi32>, tensor<?x8xi32>, tensor<16xi32>)
  return
}

// -----

// The weights of all experts are one tensor.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x256xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<448x256xf8E4M3FN>, #weight>, %indptr: tensor<17xi32>, %tokens: tensor<?x8xi32>) {
  // expected-error @+1 {{w has shape [448, 256]; weights of experts are a static [E, N, K]}}
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%a0: f32, %a1: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 192, 192>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x256xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<448x256xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>) -> tensor<?x8x192xbf16>
  return
}

// -----

// The prefix is of these experts.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x256xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x448x256xf8E4M3FN>, #weight>, %indptr: tensor<9xi32>, %tokens: tensor<?x8xi32>) {
  // expected-error @+1 {{indptr is tensor<9xi32>; expected tensor<17xi32>}}
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%a0: f32, %a1: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 192, 192>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x256xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x448x256xf8E4M3FN>, #weight>, tensor<9xi32>, tensor<?x8xi32>) -> tensor<?x8x192xbf16>
  return
}

// -----

// A prefix of 64-bit numbers is another convention.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x256xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x448x256xf8E4M3FN>, #weight>, %indptr: tensor<17xi64>, %tokens: tensor<?x8xi32>) {
  // expected-error @+1 {{indptr is tensor<17xi64>; expected tensor<17xi32>}}
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%a0: f32, %a1: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 192, 192>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x256xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x448x256xf8E4M3FN>, #weight>, tensor<17xi64>, tensor<?x8xi32>) -> tensor<?x8x192xbf16>
  return
}

// -----

// The parts of each expert begin at block boundaries.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x256xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x384x256xf8E4M3FN>, #weight>, %indptr: tensor<17xi32>, %tokens: tensor<?x8xi32>) {
  // expected-error @+1 {{parts [192, 192] make 448 rows, but w has 384; each part begins at a multiple of the scale block}}
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%a0: f32, %a1: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 192, 192>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x256xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x384x256xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>) -> tensor<?x8x192xbf16>
  return
}

// -----

// Gathered rows are rows of x.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<5x256xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x448x256xf8E4M3FN>, #weight>, %indptr: tensor<17xi32>, %tokens: tensor<4x8xi32>) {
  // expected-error @+1 {{x has shape [5, 256]; with tokens [4, 8] it has [4] rows}}
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%a0: f32, %a1: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 192, 192>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<5x256xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x448x256xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<4x8xi32>) -> tensor<4x8x192xbf16>
  return
}

// -----

// The places of rows are 32-bit numbers.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x256xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x448x256xf8E4M3FN>, #weight>, %indptr: tensor<17xi32>, %tokens: tensor<?x8xi64>) {
  // expected-error @+1 {{tokens are tensor<?x8xi64>; expected i32 [T, k]}}
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%a0: f32, %a1: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 192, 192>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x256xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x448x256xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi64>) -> tensor<?x8x192xbf16>
  return
}

// -----

// Results have a row for each choice, not for each token.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x256xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x448x256xf8E4M3FN>, #weight>, %indptr: tensor<17xi32>, %tokens: tensor<?x8xi32>) {
  // expected-error @+1 {{result 0 has shape [?, 192], but the rows of x are [?, 8]}}
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%a0: f32, %a1: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 192, 192>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x256xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x448x256xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>) -> tensor<?x192xbf16>
  return
}

// -----

// K is that of the weights.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
func.func @case(%x: !qfuse.qtensor<tensor<?x128xf8E4M3FN>, #act>, %w: !qfuse.qtensor<tensor<16x448x256xf8E4M3FN>, #weight>, %indptr: tensor<17xi32>, %tokens: tensor<?x8xi32>) {
  // expected-error @+1 {{K differs: x has [?, 128], w has [448, 256]}}
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%a0: f32, %a1: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 192, 192>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x128xf8E4M3FN>, #act>, !qfuse.qtensor<tensor<16x448x256xf8E4M3FN>, #weight>, tensor<17xi32>, tensor<?x8xi32>) -> tensor<?x8x192xbf16>
  return
}

// -----

// Rows lie as choices.
func.func @case(%y: tensor<?x8x256xbf16>, %slots: tensor<?x4xi32>, %weights: tensor<?x8xf32>) {
  // expected-error @+1 {{slots are tensor<?x4xi32>; expected tensor<?x8xi32>}}
  %out = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (tensor<?x8x256xbf16>, tensor<?x4xi32>, tensor<?x8xf32>) -> tensor<?x256xbf16>
  return
}

// -----

// A weight for each choice.
func.func @case(%y: tensor<?x8x256xbf16>, %slots: tensor<?x8xi32>, %weights: tensor<?x4xf32>) {
  // expected-error @+1 {{weights are tensor<?x4xf32>; expected a float [?, 8]}}
  %out = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (tensor<?x8x256xbf16>, tensor<?x8xi32>, tensor<?x4xf32>) -> tensor<?x256xbf16>
  return
}

// -----

// A row for each token comes out.
func.func @case(%y: tensor<?x8x256xbf16>, %slots: tensor<?x8xi32>, %weights: tensor<?x8xf32>) {
  // expected-error @+1 {{the result is tensor<?x128xbf16>; expected a float [?, 256]}}
  %out = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (tensor<?x8x256xbf16>, tensor<?x8xi32>, tensor<?x8xf32>) -> tensor<?x128xbf16>
  return
}

// -----

// As many rows as tokens.
func.func @case(%y: tensor<7x8x256xbf16>, %slots: tensor<7x8xi32>, %weights: tensor<7x8xf32>) {
  // expected-error @+1 {{the result is tensor<2x4x256xbf16>; expected a float [7, 256]}}
  %out = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (tensor<7x8x256xbf16>, tensor<7x8xi32>, tensor<7x8xf32>) -> tensor<2x4x256xbf16>
  return
}

// -----

// A residual of another type would be rounded in silence.
func.func @case(%y: tensor<?x8x256xbf16>, %slots: tensor<?x8xi32>, %weights: tensor<?x8xf32>, %res: tensor<?x256xf32>) {
  // expected-error @+1 {{the residual is tensor<?x256xf32>; expected tensor<?x256xbf16>, as the result}}
  %out = "qfuse.combine"(%y, %slots, %weights, %res) {operandSegmentSizes = array<i32: 1, 1, 1, 1>} : (tensor<?x8x256xbf16>, tensor<?x8xi32>, tensor<?x8xf32>, tensor<?x256xf32>) -> tensor<?x256xbf16>
  return
}

// -----

// How many experts there are is known.
func.func @case(%logits: tensor<?x?xf32>) {
  // expected-error @+1 {{logits are tensor<?x?xf32>; expected a float [T, E] with E known}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<?x?xf32>) -> (tensor<?x4xi64>, tensor<?x4xf32>)
  return
}

// -----

// Logits are a matrix.
func.func @case(%logits: tensor<1x?x16xf32>) {
  // expected-error @+1 {{logits are tensor<1x?x16xf32>; expected a float [T, E] with E known}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<1x?x16xf32>) -> (tensor<?x4xi64>, tensor<?x4xf32>)
  return
}

// -----

// Logits are numbers to be scored.
func.func @case(%logits: tensor<?x16xi32>) {
  // expected-error @+1 {{logits are tensor<?x16xi32>; expected a float [T, E] with E known}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<?x16xi32>) -> (tensor<?x4xi64>, tensor<?x4xf32>)
  return
}

// -----

// A bias for each expert.
func.func @case(%logits: tensor<?x16xf32>, %bias: tensor<8xf32>) {
  // expected-error @+1 {{the bias is tensor<8xf32>; expected tensor<16xf32>}}
  %ids, %weights = "qfuse.select_experts"(%logits, %bias) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<?x16xf32>, tensor<8xf32>) -> (tensor<?x4xi64>, tensor<?x4xf32>)
  return
}

// -----

// All is computed in f32.
func.func @case(%logits: tensor<?x16xf32>, %bias: tensor<16xbf16>) {
  // expected-error @+1 {{the bias is tensor<16xbf16>; expected tensor<16xf32>}}
  %ids, %weights = "qfuse.select_experts"(%logits, %bias) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<?x16xf32>, tensor<16xbf16>) -> (tensor<?x4xi64>, tensor<?x4xf32>)
  return
}

// -----

// Ids are whole numbers.
func.func @case(%logits: tensor<?x16xf32>) {
  // expected-error @+1 {{ids are tensor<?x4xf32>; expected whole numbers [?, ?]}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<?x16xf32>) -> (tensor<?x4xf32>, tensor<?x4xf32>)
  return
}

// -----

// Ids for each token.
func.func @case(%logits: tensor<?x16xf32>) {
  // expected-error @+1 {{ids are tensor<3x4xi64>; expected whole numbers [?, ?]}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<?x16xf32>) -> (tensor<3x4xi64>, tensor<?x4xf32>)
  return
}

// -----

// No expert is chosen twice.
func.func @case(%logits: tensor<?x16xf32>) {
  // expected-error @+1 {{ids are tensor<?x17xi64>; a token chooses 1 to 16 experts}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<?x16xf32>) -> (tensor<?x17xi64>, tensor<?x17xf32>)
  return
}

// -----

// How many experts a token chooses is known.
func.func @case(%logits: tensor<?x16xf32>) {
  // expected-error @+1 {{a token chooses 1 to 16 experts}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<?x16xf32>) -> (tensor<?x?xi64>, tensor<?x?xf32>)
  return
}

// -----

// A weight for each choice.
func.func @case(%logits: tensor<?x16xf32>) {
  // expected-error @+1 {{weights are tensor<?x2xf32>; expected a float [?, 4]}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<?x16xf32>) -> (tensor<?x4xi64>, tensor<?x2xf32>)
  return
}

// -----

// Weights are fractions.
func.func @case(%logits: tensor<?x16xf32>) {
  // expected-error @+1 {{weights are tensor<?x4xi64>; expected a float [?, 4]}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<?x16xf32>) -> (tensor<?x4xi64>, tensor<?x4xi64>)
  return
}

// -----

// Either they are divided by their sum or not.
func.func @case(%logits: tensor<?x16xf32>) {
  // expected-error @+1 {{normalize is 1 : i64; expected true or false}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = 1 : i64, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<?x16xf32>) -> (tensor<?x4xi64>, tensor<?x4xf32>)
  return
}

// -----

// The scores that kernels know.
func.func @case(%logits: tensor<?x16xf32>) {
  // expected-error @+1 {{scoring "tanh" is not one of softmax, sigmoid}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "tanh", normalize = true, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<?x16xf32>) -> (tensor<?x4xi64>, tensor<?x4xf32>)
  return
}

// -----

// Groups are equal.
func.func @case(%logits: tensor<?x16xf32>) {
  // expected-error @+1 {{1 of 3 groups of 16 experts; use equal groups, 1 or more}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 3 : i64, groups_used = 1 : i64} : (tensor<?x16xf32>) -> (tensor<?x4xi64>, tensor<?x4xf32>)
  return
}

// -----

// There is a group at least.
func.func @case(%logits: tensor<?x16xf32>) {
  // expected-error @+1 {{1 of 0 groups of 16 experts; use equal groups, 1 or more}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 0 : i64, groups_used = 1 : i64} : (tensor<?x16xf32>) -> (tensor<?x4xi64>, tensor<?x4xf32>)
  return
}

// -----

// No more groups are used than there are.
func.func @case(%logits: tensor<?x16xf32>) {
  // expected-error @+1 {{5 of 4 groups of 16 experts; use equal groups, 1 or more}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 4 : i64, groups_used = 5 : i64} : (tensor<?x16xf32>) -> (tensor<?x4xi64>, tensor<?x4xf32>)
  return
}

// -----

// The groups used have experts enough.
func.func @case(%logits: tensor<?x16xf32>) {
  // expected-error @+1 {{a token chooses 4 experts of 2}}
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 8 : i64, groups_used = 1 : i64} : (tensor<?x16xf32>) -> (tensor<?x4xi64>, tensor<?x4xf32>)
  return
}

// -----

// There is one shared expert, or none.
func.func @case(%ids: tensor<?x8xi64>) {
  // expected-error @+1 {{shared is 2 : i64; expected 0 : i64, or 1 : i64 for a shared expert}}
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64, shared = 2 : i64} : (tensor<?x8xi64>) -> (tensor<?x10xi32>, tensor<?x10xi32>, tensor<19xi32>)
  return
}

// -----

// How many there are is a number.
func.func @case(%ids: tensor<?x8xi64>) {
  // expected-error @+1 {{shared is true; expected 0 : i64, or 1 : i64 for a shared expert}}
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64, shared = true} : (tensor<?x8xi64>) -> (tensor<?x9xi32>, tensor<?x9xi32>, tensor<18xi32>)
  return
}

// -----

// A shared expert is one more choice.
func.func @case(%ids: tensor<?x8xi64>) {
  // expected-error @+1 {{slots are tensor<?x8xi32>; expected tensor<?x9xi32>}}
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64, shared = 1 : i64} : (tensor<?x8xi64>) -> (tensor<?x8xi32>, tensor<?x8xi32>, tensor<18xi32>)
  return
}

// -----

// And one more expert.
func.func @case(%ids: tensor<?x8xi64>) {
  // expected-error @+1 {{indptr is tensor<17xi32>; expected tensor<18xi32>}}
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64, shared = 1 : i64} : (tensor<?x8xi64>) -> (tensor<?x9xi32>, tensor<?x9xi32>, tensor<17xi32>)
  return
}

// -----

// At most one choice has no weight.
func.func @case(%y: tensor<?x8x256xbf16>, %slots: tensor<?x8xi32>, %weights: tensor<?x6xf32>) {
  // expected-error @+1 {{weights are tensor<?x6xf32>; expected a float [?, 8]}}
  %out = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (tensor<?x8x256xbf16>, tensor<?x8xi32>, tensor<?x6xf32>) -> tensor<?x256xbf16>
  return
}

// -----

// One more expert behind a stack of them.
func.func @case(%w: tensor<64x32xbf16>) {
  // expected-error @+1 {{experts have shape [64, 32]; expected a static [E, N, K]}}
  %all = "qfuse.append_expert"(%w, %w) : (tensor<64x32xbf16>, tensor<64x32xbf16>) -> tensor<2x64x32xbf16>
  return
}

// -----

// It is as high as the others are.
func.func @case(%w: tensor<4x64x32xbf16>, %one: tensor<128x32xbf16>) {
  // expected-error @+1 {{the weight is tensor<128x32xbf16>; expected tensor<64x32xbf16>, as of each expert}}
  %all = "qfuse.append_expert"(%w, %one) : (tensor<4x64x32xbf16>, tensor<128x32xbf16>) -> tensor<5x64x32xbf16>
  return
}

// -----

// It is scaled as the others are.
#one = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
#other = #qfuse.scheme<array<i64: 64, 128>, f32, "none", "none", "row_major">
func.func @case(%w: !qfuse.qtensor<tensor<4x64x32xf8E4M3FN>, #one>, %one: !qfuse.qtensor<tensor<64x32xf8E4M3FN>, #other>) {
  // expected-error @+1 {{as of each expert}}
  %all = "qfuse.append_expert"(%w, %one) : (!qfuse.qtensor<tensor<4x64x32xf8E4M3FN>, #one>, !qfuse.qtensor<tensor<64x32xf8E4M3FN>, #other>) -> !qfuse.qtensor<tensor<5x64x32xf8E4M3FN>, #one>
  return
}

// -----

// Then there is one expert more.
func.func @case(%w: tensor<4x64x32xbf16>, %one: tensor<64x32xbf16>) {
  // expected-error @+1 {{result type should be tensor<5x64x32xbf16>, not tensor<4x64x32xbf16>}}
  %all = "qfuse.append_expert"(%w, %one) : (tensor<4x64x32xbf16>, tensor<64x32xbf16>) -> tensor<4x64x32xbf16>
  return
}

// -----

// Every expert has its row of a bias.
func.func @case(%x: tensor<?x64xbf16>, %w: tensor<4x40x64xbf16>, %indptr: tensor<5xi32>, %tokens: tensor<?x2xi32>, %b: tensor<3x40xbf16>) {
  // expected-error @+1 {{extra operand 0 has shape [3, 40], which does not fit its map "[E,N]" over [4, 40]}}
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens, %b) ({
  ^bb0(%a0: f32, %e: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 40>, maps = ["[E,N]"], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x64xbf16>, tensor<4x40x64xbf16>, tensor<5xi32>, tensor<?x2xi32>, tensor<3x40xbf16>) -> tensor<?x2x40xbf16>
  return
}

// -----

// A bias is as wide as a part; one of all parts is cut first.
func.func @case(%x: tensor<?x64xbf16>, %w: tensor<4x70x64xbf16>, %indptr: tensor<5xi32>, %tokens: tensor<?x2xi32>, %b: tensor<4x70xbf16>) {
  // expected-error @+1 {{extra operand 0 has shape [4, 70], which does not fit its map "[E,N]" over [4, 30] or [4, 40]}}
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens, %b) ({
  ^bb0(%a0: f32, %a1: f32, %e: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 40, 30>, maps = ["[E,N]"], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x64xbf16>, tensor<4x70x64xbf16>, tensor<5xi32>, tensor<?x2xi32>, tensor<4x70xbf16>) -> tensor<?x2x40xbf16>
  return
}

// -----

// It is not broadcast: that would be the map [N].
func.func @case(%x: tensor<?x64xbf16>, %w: tensor<4x40x64xbf16>, %indptr: tensor<5xi32>, %tokens: tensor<?x2xi32>, %b: tensor<1x40xbf16>) {
  // expected-error @+1 {{extra operand 0 has shape [1, 40], which does not fit its map "[E,N]" over [4, 40]}}
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens, %b) ({
  ^bb0(%a0: f32, %e: f32):
    "qfuse.yield"(%a0) : (f32) -> ()
  }) {parts = array<i64: 40>, maps = ["[E,N]"], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x64xbf16>, tensor<4x40x64xbf16>, tensor<5xi32>, tensor<?x2xi32>, tensor<1x40xbf16>) -> tensor<?x2x40xbf16>
  return
}

// -----

// One optional operand needs no segment sizes; where they are, they are right.
func.func @case(%y: tensor<?x2x64xbf16>, %slots: tensor<?x2xi32>, %weights: tensor<?x2xf32>) {
  // expected-error @+1 {{operandSegmentSizes is array<i8: 1, 1, 1, 0>; expected 0 or 1, as i32, for each of y, slots, weights, residual, 3 in all}}
  %sum = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i8: 1, 1, 1, 0>} : (tensor<?x2x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @case(%y: tensor<?x64xbf16>, %slots: tensor<?x2xi32>, %weights: tensor<?x2xf32>) {
  // expected-error @+1 {{y is tensor<?x64xbf16>; expected a float [T, k, N]}}
  %sum = "qfuse.combine"(%y, %slots, %weights) : (tensor<?x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>) -> tensor<?x64xbf16>
  return
}
