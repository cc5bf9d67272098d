// RUN: qfuse-opt --qfuse-fuse-shared-expert --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-shared-expert --split-input-file --verify-diagnostics %s

// A shared expert of the experts' own shapes is one more of them, which every token chooses.

// Up begins at a block boundary in each weight, 128 rows from its gate.
// CHECK-LABEL: func.func @fires
// CHECK-SAME:    %[[X:.+]]: !qfuse{{.*}}, %[[IDS:.+]]: tensor<?x2xi64>, %[[WEIGHTS:.+]]: tensor<?x2xf32>, %[[BOTH:.+]]: !qfuse{{.*}}, %[[DOWN:.+]]: !qfuse{{.*}}, %[[GATE:.+]]: !qfuse{{.*}}, %[[UP:.+]]: !qfuse{{.*}}, %[[LAST:.+]]: !qfuse
// CHECK:         %[[R:.+]]:3 = "qfuse.route"(%[[IDS]]) {num_experts = 4 : i64, shared = 1 : i64} : (tensor<?x2xi64>) -> (tensor<?x3xi32>, tensor<?x3xi32>, tensor<6xi32>)
// CHECK-NEXT:    %[[ONE:.+]] = "qfuse.concat"(%[[GATE]], %[[UP]])
// CHECK-NEXT:    %[[W1:.+]] = "qfuse.append_expert"(%[[BOTH]], %[[ONE]]) : {{.*}} -> !qfuse.qtensor<tensor<5x208x256xf8E4M3FN>
// CHECK-NEXT:    %[[GU:.+]]:2 = "qfuse.group_matmul"(%[[X]], %[[W1]], %[[R]]#2, %[[R]]#1)
// CHECK:           -> (tensor<?x3x80xbf16>, tensor<?x3x80xbf16>)
// CHECK-NEXT:    %[[H:.+]] = "qfuse.glu"(%[[GU]]#0, %[[GU]]#1) {act = "silu"
// CHECK-NEXT:    %[[HQ:.+]] = "qfuse.quantize"(%[[H]])
// CHECK-NEXT:    %[[W2:.+]] = "qfuse.append_expert"(%[[DOWN]], %[[LAST]]) : {{.*}} -> !qfuse.qtensor<tensor<5x256x80xf8E4M3FN>
// CHECK-NEXT:    %[[Y:.+]] = "qfuse.group_matmul"(%[[HQ]], %[[W2]], %[[R]]#2)
// CHECK:         %[[OUT:.+]] = "qfuse.combine"(%[[Y]], %[[R]]#0, %[[WEIGHTS]]) {{.*}} : (tensor<?x3x256xbf16>, tensor<?x3xi32>, tensor<?x2xf32>) -> tensor<1x?x256xbf16>
// CHECK-NEXT:    return %[[OUT]]
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<1x?x256xbf16>
!xq = !qfuse.qtensor<tensor<1x?x256xf8E4M3FN>, #act>
!both = !qfuse.qtensor<tensor<4x208x256xf8E4M3FN>, #weight>
!down = !qfuse.qtensor<tensor<4x256x80xf8E4M3FN>, #weight>
!h = tensor<?x2x80xbf16>
!hq = !qfuse.qtensor<tensor<?x2x80xf8E4M3FN>, #act>
!y = tensor<?x2x256xbf16>
!slots = tensor<?x2xi32>
!wide = !qfuse.qtensor<tensor<80x256xf8E4M3FN>, #weight>
!narrow = !qfuse.qtensor<tensor<256x80xf8E4M3FN>, #weight>
!sh = tensor<1x?x80xbf16>
!shq = !qfuse.qtensor<tensor<1x?x80xf8E4M3FN>, #act>
func.func @fires(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> !x {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 4 : i64} : (tensor<?x2xi64>) -> (!slots, !slots, tensor<5xi32>)
  %g, %u = "qfuse.group_matmul"(%x, %both, %indptr, %tokens) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a, %b) : (f32, f32) -> ()
  }) {parts = array<i64: 80, 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!xq, !both, tensor<5xi32>, !slots) -> (!h, !h)
  %h = "qfuse.glu"(%g, %u) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!h, !h) -> !h
  %hq = "qfuse.quantize"(%h) : (!h) -> !hq
  %y = "qfuse.group_matmul"(%hq, %down, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!hq, !down, tensor<5xi32>) -> !y
  %sum = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !slots, tensor<?x2xf32>) -> !x
  %sg = "qfuse.matmul"(%x, %gate) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide) -> !sh
  %su = "qfuse.matmul"(%x, %up) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide) -> !sh
  %sh = "qfuse.glu"(%sg, %su) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!sh, !sh) -> !sh
  %shq = "qfuse.quantize"(%sh) : (!sh) -> !shq
  %shared = "qfuse.matmul"(%shq, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!shq, !narrow) -> !x
  // expected-remark @+1 {{shared-expert: fired at qfuse.add: saves 6 launches, -12 B, 1536 B a row}}
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// The shared expert may come first, and be the first operand; other readers of x do not matter.
// CHECK-LABEL: func.func @other_order
// CHECK:         %[[OUT:.+]] = "qfuse.combine"{{.*}}tensor<?x3xi32>, tensor<?x2xf32>
// CHECK-NEXT:    return %[[OUT]]
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<1x?x256xbf16>
!xq = !qfuse.qtensor<tensor<1x?x256xf8E4M3FN>, #act>
!both = !qfuse.qtensor<tensor<4x208x256xf8E4M3FN>, #weight>
!down = !qfuse.qtensor<tensor<4x256x80xf8E4M3FN>, #weight>
!h = tensor<?x2x80xbf16>
!hq = !qfuse.qtensor<tensor<?x2x80xf8E4M3FN>, #act>
!y = tensor<?x2x256xbf16>
!slots = tensor<?x2xi32>
!wide = !qfuse.qtensor<tensor<80x256xf8E4M3FN>, #weight>
!narrow = !qfuse.qtensor<tensor<256x80xf8E4M3FN>, #weight>
!sh = tensor<1x?x80xbf16>
!shq = !qfuse.qtensor<tensor<1x?x80xf8E4M3FN>, #act>
func.func @other_order(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> !x {
  %sg = "qfuse.matmul"(%x, %gate) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide) -> !sh
  %su = "qfuse.matmul"(%x, %up) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide) -> !sh
  %sh = "qfuse.glu"(%sg, %su) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!sh, !sh) -> !sh
  %shq = "qfuse.quantize"(%sh) : (!sh) -> !shq
  %shared = "qfuse.matmul"(%shq, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!shq, !narrow) -> !x
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 4 : i64} : (tensor<?x2xi64>) -> (!slots, !slots, tensor<5xi32>)
  %g, %u = "qfuse.group_matmul"(%x, %both, %indptr, %tokens) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a, %b) : (f32, f32) -> ()
  }) {parts = array<i64: 80, 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!xq, !both, tensor<5xi32>, !slots) -> (!h, !h)
  %h = "qfuse.glu"(%g, %u) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!h, !h) -> !h
  %hq = "qfuse.quantize"(%h) : (!h) -> !hq
  %y = "qfuse.group_matmul"(%hq, %down, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!hq, !down, tensor<5xi32>) -> !y
  %sum = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !slots, tensor<?x2xf32>) -> !x
  // expected-remark @+1 {{shared-expert: fired at qfuse.add}}
  %out = "qfuse.add"(%shared, %sum) : (!x, !x) -> !x
  return %out : !x
}

// -----

// Activations as they are, without a scale: weights are quantized alone.
// CHECK-LABEL: func.func @plain_activations
// CHECK-NOT:     qfuse.quantize
// CHECK:         %[[OUT:.+]] = "qfuse.combine"{{.*}}tensor<?x3xi32>, tensor<?x2xf32>
// CHECK-NEXT:    return %[[OUT]]
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<1x?x256xbf16>
!both = !qfuse.qtensor<tensor<4x208x256xf8E4M3FN>, #weight>
!down = !qfuse.qtensor<tensor<4x256x80xf8E4M3FN>, #weight>
!h = tensor<?x2x80xbf16>
!y = tensor<?x2x256xbf16>
!slots = tensor<?x2xi32>
!wide = !qfuse.qtensor<tensor<80x256xf8E4M3FN>, #weight>
!narrow = !qfuse.qtensor<tensor<256x80xf8E4M3FN>, #weight>
!sh = tensor<1x?x80xbf16>
func.func @plain_activations(%x: !x, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> !x {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 4 : i64} : (tensor<?x2xi64>) -> (!slots, !slots, tensor<5xi32>)
  %g, %u = "qfuse.group_matmul"(%x, %both, %indptr, %tokens) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a, %b) : (f32, f32) -> ()
  }) {parts = array<i64: 80, 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!x, !both, tensor<5xi32>, !slots) -> (!h, !h)
  %h = "qfuse.glu"(%g, %u) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!h, !h) -> !h
  %y = "qfuse.group_matmul"(%h, %down, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!h, !down, tensor<5xi32>) -> !y
  %sum = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !slots, tensor<?x2xf32>) -> !x
  %sg = "qfuse.matmul"(%x, %gate) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !wide) -> !sh
  %su = "qfuse.matmul"(%x, %up) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !wide) -> !sh
  %sh = "qfuse.glu"(%sg, %su) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!sh, !sh) -> !sh
  %shared = "qfuse.matmul"(%sh, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!sh, !narrow) -> !x
  // expected-remark @+1 {{shared-expert: fired at qfuse.add}}
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// A residual is no shared expert: nothing to say.
// CHECK-LABEL: func.func @no_shared_expert
// CHECK:         "qfuse.route"(%arg1) {num_experts = 4 : i64} :
// CHECK:         "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<1x?x256xbf16>
!xq = !qfuse.qtensor<tensor<1x?x256xf8E4M3FN>, #act>
!both = !qfuse.qtensor<tensor<4x208x256xf8E4M3FN>, #weight>
!down = !qfuse.qtensor<tensor<4x256x80xf8E4M3FN>, #weight>
!h = tensor<?x2x80xbf16>
!hq = !qfuse.qtensor<tensor<?x2x80xf8E4M3FN>, #act>
!y = tensor<?x2x256xbf16>
!slots = tensor<?x2xi32>
!wide = !qfuse.qtensor<tensor<80x256xf8E4M3FN>, #weight>
!narrow = !qfuse.qtensor<tensor<256x80xf8E4M3FN>, #weight>
!sh = tensor<1x?x80xbf16>
!shq = !qfuse.qtensor<tensor<1x?x80xf8E4M3FN>, #act>
func.func @no_shared_expert(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %residual: !x) -> !x {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 4 : i64} : (tensor<?x2xi64>) -> (!slots, !slots, tensor<5xi32>)
  %g, %u = "qfuse.group_matmul"(%x, %both, %indptr, %tokens) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a, %b) : (f32, f32) -> ()
  }) {parts = array<i64: 80, 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!xq, !both, tensor<5xi32>, !slots) -> (!h, !h)
  %h = "qfuse.glu"(%g, %u) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!h, !h) -> !h
  %hq = "qfuse.quantize"(%h) : (!h) -> !hq
  %y = "qfuse.group_matmul"(%hq, %down, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!hq, !down, tensor<5xi32>) -> !y
  %sum = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !slots, tensor<?x2xf32>) -> !x
  %out = "qfuse.add"(%residual, %sum) : (!x, !x) -> !x
  return %out : !x
}

// -----

// Unquantized ones alike; their parts need no room between them.
// CHECK-LABEL: func.func @unquantized
// CHECK-SAME:    %[[X:.+]]: tensor<1x?x256xbf16>, {{.*}}, %[[BOTH:.+]]: tensor<4x160x256xbf16>, %[[DOWN:.+]]: tensor<4x256x80xbf16>, %[[GATE:.+]]: tensor<80x256xbf16>, %[[UP:.+]]: tensor<80x256xbf16>, %[[LAST:.+]]: tensor
// CHECK:         %[[ONE:.+]] = "qfuse.concat"(%[[GATE]], %[[UP]])
// CHECK-NEXT:    "qfuse.append_expert"(%[[BOTH]], %[[ONE]]) : {{.*}} -> tensor<5x160x256xbf16>
// CHECK:         "qfuse.append_expert"(%[[DOWN]], %[[LAST]]) : {{.*}} -> tensor<5x256x80xbf16>
!x = tensor<1x?x256xbf16>
!h = tensor<?x2x80xbf16>
!y = tensor<?x2x256xbf16>
!slots = tensor<?x2xi32>
!sh = tensor<1x?x80xbf16>
func.func @unquantized(%x: !x, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: tensor<4x160x256xbf16>, %down: tensor<4x256x80xbf16>, %gate: tensor<80x256xbf16>, %up: tensor<80x256xbf16>, %last: tensor<256x80xbf16>) -> !x {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 4 : i64} : (tensor<?x2xi64>) -> (!slots, !slots, tensor<5xi32>)
  %g, %u = "qfuse.group_matmul"(%x, %both, %indptr, %tokens) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a, %b) : (f32, f32) -> ()
  }) {parts = array<i64: 80, 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!x, tensor<4x160x256xbf16>, tensor<5xi32>, !slots) -> (!h, !h)
  %h = "qfuse.glu"(%g, %u) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!h, !h) -> !h
  %y = "qfuse.group_matmul"(%h, %down, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!h, tensor<4x256x80xbf16>, tensor<5xi32>) -> !y
  %sum = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !slots, tensor<?x2xf32>) -> !x
  %sg = "qfuse.matmul"(%x, %gate) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<80x256xbf16>) -> !sh
  %su = "qfuse.matmul"(%x, %up) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<80x256xbf16>) -> !sh
  %sh = "qfuse.glu"(%sg, %su) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!sh, !sh) -> !sh
  %shared = "qfuse.matmul"(%sh, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!sh, tensor<256x80xbf16>) -> !x
  // expected-remark @+1 {{shared-expert: fired at qfuse.add}}
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// Hidden values by one static scale: the shared expert's rows are quantized with the others.
// CHECK-LABEL: func.func @static_scale
// CHECK:         "qfuse.route"(%arg3) {num_experts = 4 : i64, shared = 1 : i64}
// CHECK:         %[[H:.+]] = "qfuse.glu"
// CHECK-NEXT:    %[[HQ:.+]] = "qfuse.quantize"(%[[H]], %arg2) : (tensor<?x3x80xbf16>, tensor<1xf32>)
// CHECK:         "qfuse.group_matmul"(%[[HQ]]
// CHECK-NOT:     "qfuse.add"
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<1x?x256xbf16>
!xs = !qfuse.qtensor<tensor<1x?x256xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 256>, f32, "none", "none", "row_major">>
!both = !qfuse.qtensor<tensor<4x208x256xf8E4M3FN>, #weight>
!down = !qfuse.qtensor<tensor<4x256x80xf8E4M3FN>, #weight>
!h = tensor<?x2x80xbf16>
!hs = !qfuse.qtensor<tensor<?x2x80xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 80>, f32, "none", "none", "row_major">>
!y = tensor<?x2x256xbf16>
!slots = tensor<?x2xi32>
!wide = !qfuse.qtensor<tensor<80x256xf8E4M3FN>, #weight>
!narrow = !qfuse.qtensor<tensor<256x80xf8E4M3FN>, #weight>
!sh = tensor<1x?x80xbf16>
!shq = !qfuse.qtensor<tensor<1x?x80xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 80>, f32, "none", "none", "row_major">>
func.func @static_scale(%v: !x, %s: tensor<1xf32>, %t: tensor<1xf32>, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> !x {
  %x = "qfuse.quantize"(%v, %s) : (!x, tensor<1xf32>) -> !xs
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 4 : i64} : (tensor<?x2xi64>) -> (!slots, !slots, tensor<5xi32>)
  %g, %u = "qfuse.group_matmul"(%x, %both, %indptr, %tokens) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a, %b) : (f32, f32) -> ()
  }) {parts = array<i64: 80, 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!xs, !both, tensor<5xi32>, !slots) -> (!h, !h)
  %h = "qfuse.glu"(%g, %u) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!h, !h) -> !h
  %hq = "qfuse.quantize"(%h, %t) : (!h, tensor<1xf32>) -> !hs
  %y = "qfuse.group_matmul"(%hq, %down, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!hs, !down, tensor<5xi32>) -> !y
  %sum = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !slots, tensor<?x2xf32>) -> !x
  %sg = "qfuse.matmul"(%x, %gate) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xs, !wide) -> !sh
  %su = "qfuse.matmul"(%x, %up) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xs, !wide) -> !sh
  %sh = "qfuse.glu"(%sg, %su) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!sh, !sh) -> !sh
  %shq = "qfuse.quantize"(%sh, %t) : (!sh, tensor<1xf32>) -> !shq
  %shared = "qfuse.matmul"(%shq, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!shq, !narrow) -> !x
  // expected-remark @+1 {{shared-expert: fired}}
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}
