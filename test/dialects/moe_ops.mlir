// RUN: qfuse-opt %s | qfuse-opt | filecheck %s

// The operations of a mixture-of-experts layer, printed and read again.

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<1x?x256xf8E4M3FN>, #act>
!hq = !qfuse.qtensor<tensor<?x8x192xf8E4M3FN>, #act>
!wg = !qfuse.qtensor<tensor<16x448x256xf8E4M3FN>, #weight>
!wd = !qfuse.qtensor<tensor<16x256x192xf8E4M3FN>, #weight>

// 192 rows of gate end inside a block of 128, so up begins at row 256: 448 rows for each expert.
// CHECK-LABEL: func.func @layer
// CHECK: "qfuse.route"(%{{.*}}) {num_experts = 16 : i64} : (tensor<?x8xi64>) -> (tensor<?x8xi32>, tensor<?x8xi32>, tensor<17xi32>)
// CHECK: "qfuse.group_matmul"(%{{.*}}, %{{.*}}, %{{.*}}#2, %{{.*}}#1)
// CHECK: parts = array<i64: 192, 192>
// CHECK: "qfuse.group_matmul"(%{{.*}}, %{{.*}}, %{{.*}}#2)
// CHECK: "qfuse.combine"{{.*}}operandSegmentSizes = array<i32: 1, 1, 1, 1>
func.func @layer(%x: !xq, %ids: tensor<?x8xi64>, %weights: tensor<?x8xf32>, %g: !wg, %d: !wd, %residual: tensor<1x?x256xbf16>) -> tensor<1x?x256xbf16> {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64} : (tensor<?x8xi64>) -> (tensor<?x8xi32>, tensor<?x8xi32>, tensor<17xi32>)
  %h = "qfuse.group_matmul"(%x, %g, %indptr, %tokens) ({
  ^bb0(%gate: f32, %up: f32):
    %v = arith.mulf %gate, %up : f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 192, 192>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wg, tensor<17xi32>, tensor<?x8xi32>) -> !hq
  %y = "qfuse.group_matmul"(%h, %d, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!hq, !wd, tensor<17xi32>) -> tensor<?x8x256xbf16>
  %out = "qfuse.combine"(%y, %slots, %weights, %residual) {operandSegmentSizes = array<i32: 1, 1, 1, 1>} : (tensor<?x8x256xbf16>, tensor<?x8xi32>, tensor<?x8xf32>, tensor<1x?x256xbf16>) -> tensor<1x?x256xbf16>
  return %out : tensor<1x?x256xbf16>
}

// Added up in the product: with a residual in another shape, and with an expert that is shared.
// CHECK-LABEL: func.func @added_up
// CHECK: "qfuse.group_matmul_combine"(%arg0, %arg1, %arg2, %arg3, %arg4, %arg5)
// CHECK: operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>
// CHECK: "qfuse.group_matmul_combine"(%arg0, %arg1, %arg2, %arg3, %{{.+}}, %{{.+}})
// CHECK: maps = ["[M,1]"], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0>
func.func @added_up(%h: !hq, %w: !wd, %indptr: tensor<17xi32>, %slots: tensor<?x8xi32>, %weights: tensor<?x8xf32>, %residual: tensor<1x?x256xbf16>, %some: tensor<?x7xbf16>, %scale: tensor<?x8x1xf32>) -> (tensor<1x?x256xbf16>, tensor<?x256xf32>) {
  %a = "qfuse.group_matmul_combine"(%h, %w, %indptr, %slots, %weights, %residual) ({
  ^bb0(%acc: f32):
    %cut = arith.truncf %acc : f32 to bf16
    %row = arith.extf %cut : bf16 to f32
    "qfuse.yield"(%row) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>} : (!hq, !wd, tensor<17xi32>, tensor<?x8xi32>, tensor<?x8xf32>, tensor<1x?x256xbf16>) -> tensor<1x?x256xbf16>
  %b = "qfuse.group_matmul_combine"(%h, %w, %indptr, %slots, %some, %scale) ({
  ^bb0(%acc: f32, %s: f32):
    %row = arith.mulf %acc, %s : f32
    "qfuse.yield"(%row) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = ["[M,1]"], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0>} : (!hq, !wd, tensor<17xi32>, tensor<?x8xi32>, tensor<?x7xbf16>, tensor<?x8x1xf32>) -> tensor<?x256xf32>
  return %a, %b : tensor<1x?x256xbf16>, tensor<?x256xf32>
}

// Plain operands, an extra operand seen by columns, and 32-bit ids of a known number of tokens.
// CHECK-LABEL: func.func @plain
// CHECK: "qfuse.route"{{.*}}tensor<3x2xi32>
// CHECK: "qfuse.group_matmul"{{.*}}
// CHECK: maps = ["[N]"]
func.func @plain(%x: tensor<3x64xbf16>, %ids: tensor<3x2xi32>, %w: tensor<4x96x64xbf16>, %bias: tensor<96xbf16>) -> tensor<3x2x96xf32> {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 4 : i64} : (tensor<3x2xi32>) -> (tensor<3x2xi32>, tensor<3x2xi32>, tensor<5xi32>)
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens, %bias) ({
  ^bb0(%acc: f32, %b: f32):
    %v = arith.addf %acc, %b : f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 96>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<3x64xbf16>, tensor<4x96x64xbf16>, tensor<5xi32>, tensor<3x2xi32>, tensor<96xbf16>) -> tensor<3x2x96xf32>
  return %y : tensor<3x2x96xf32>
}

// A shared expert: the last of all, and of each token's choices, beside the weights of the others.
// CHECK-LABEL: func.func @shared_expert
// CHECK: "qfuse.concat"(%{{.*}}, %{{.*}}) {{.*}} -> !qfuse.qtensor<tensor<448x256xf8E4M3FN>
// CHECK: "qfuse.append_expert"(%{{.*}}, %{{.*}}) : {{.*}} -> !qfuse.qtensor<tensor<17x448x256xf8E4M3FN>
// CHECK: "qfuse.route"(%{{.*}}) {num_experts = 16 : i64, shared = 1 : i64} : (tensor<?x8xi64>) -> (tensor<?x9xi32>, tensor<?x9xi32>, tensor<18xi32>)
// CHECK: "qfuse.route"(%{{.*}}) {num_experts = 16 : i64, shared = 0 : i64}
// CHECK: "qfuse.combine"{{.*}} : (tensor<?x9x256xbf16>, tensor<?x9xi32>, tensor<?x8xf32>, tensor<1x?x256xbf16>)
func.func @shared_expert(%ids: tensor<?x8xi64>, %weights: tensor<?x8xf32>, %g: !wg, %gate: !qfuse.qtensor<tensor<192x256xf8E4M3FN>, #weight>, %y: tensor<?x9x256xbf16>, %residual: tensor<1x?x256xbf16>) -> (!qfuse.qtensor<tensor<17x448x256xf8E4M3FN>, #weight>, tensor<1x?x256xbf16>) {
  %one = "qfuse.concat"(%gate, %gate) {operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (!qfuse.qtensor<tensor<192x256xf8E4M3FN>, #weight>, !qfuse.qtensor<tensor<192x256xf8E4M3FN>, #weight>) -> !qfuse.qtensor<tensor<448x256xf8E4M3FN>, #weight>
  %all = "qfuse.append_expert"(%g, %one) : (!wg, !qfuse.qtensor<tensor<448x256xf8E4M3FN>, #weight>) -> !qfuse.qtensor<tensor<17x448x256xf8E4M3FN>, #weight>
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64, shared = 1 : i64} : (tensor<?x8xi64>) -> (tensor<?x9xi32>, tensor<?x9xi32>, tensor<18xi32>)
  %none:3 = "qfuse.route"(%ids) {num_experts = 16 : i64, shared = 0 : i64} : (tensor<?x8xi64>) -> (tensor<?x8xi32>, tensor<?x8xi32>, tensor<17xi32>)
  %out = "qfuse.combine"(%y, %slots, %weights, %residual) {operandSegmentSizes = array<i32: 1, 1, 1, 1>} : (tensor<?x9x256xbf16>, tensor<?x9xi32>, tensor<?x8xf32>, tensor<1x?x256xbf16>) -> tensor<1x?x256xbf16>
  return %all, %out : !qfuse.qtensor<tensor<17x448x256xf8E4M3FN>, #weight>, tensor<1x?x256xbf16>
}

// Routers: a softmax over all experts; sigmoids with a correction bias and 4 of 8 groups; 32-bit ids of all experts.
// CHECK-LABEL: func.func @routers
// CHECK: "qfuse.select_experts"(%{{.*}}) {groups_used = 1 : i64, normalize = true, num_groups = 1 : i64, scale = 1.000000e+00 : f64, scoring = "softmax"} : (tensor<?x128xbf16>) -> (tensor<?x8xi64>, tensor<?x8xbf16>)
// CHECK: "qfuse.select_experts"(%{{.*}}, %{{.*}}) {groups_used = 4 : i64, normalize = true, num_groups = 8 : i64, scale = 2.500000e+00 : f64, scoring = "sigmoid"} : (tensor<?x256xf32>, tensor<256xf32>) -> (tensor<?x8xi64>, tensor<?x8xf32>)
// CHECK: "qfuse.select_experts"{{.*}}normalize = false{{.*}} : (tensor<3x4xf16>) -> (tensor<3x4xi32>, tensor<3x4xf32>)
func.func @routers(%soft: tensor<?x128xbf16>, %sig: tensor<?x256xf32>, %bias: tensor<256xf32>, %few: tensor<3x4xf16>) {
  %a:2 = "qfuse.select_experts"(%soft) {scoring = "softmax", normalize = true, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<?x128xbf16>) -> (tensor<?x8xi64>, tensor<?x8xbf16>)
  %b:2 = "qfuse.select_experts"(%sig, %bias) {scoring = "sigmoid", normalize = true, scale = 2.5 : f64, num_groups = 8 : i64, groups_used = 4 : i64} : (tensor<?x256xf32>, tensor<256xf32>) -> (tensor<?x8xi64>, tensor<?x8xf32>)
  %c:2 = "qfuse.select_experts"(%few) {scoring = "softmax", normalize = false, scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64} : (tensor<3x4xf16>) -> (tensor<3x4xi32>, tensor<3x4xf32>)
  return
}

// A bias for each expert and part: rows see that of their expert.
// CHECK-LABEL: func.func @biases
// CHECK: "qfuse.group_matmul"
// CHECK: maps = ["[E,N]", "[E,N]"]
func.func @biases(%x: tensor<?x64xbf16>, %w: tensor<4x80x64xbf16>, %indptr: tensor<5xi32>, %tokens: tensor<?x2xi32>, %a: tensor<4x40xbf16>, %b: tensor<4x40xf32>) -> tensor<?x2x40xbf16> {
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens, %a, %b) ({
  ^bb0(%gate: f32, %up: f32, %c: f32, %d: f32):
    %0 = arith.addf %gate, %c : f32
    %1 = arith.addf %up, %d : f32
    %2 = arith.mulf %0, %1 : f32
    "qfuse.yield"(%2) : (f32) -> ()
  }) {parts = array<i64: 40, 40>, maps = ["[E,N]", "[E,N]"], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x64xbf16>, tensor<4x80x64xbf16>, tensor<5xi32>, tensor<?x2xi32>, tensor<4x40xbf16>, tensor<4x40xf32>) -> tensor<?x2x40xbf16>
  return %y : tensor<?x2x40xbf16>
}
