// RUN: qfuse-opt --qfuse-fuse-shared-expert --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-shared-expert --split-input-file --verify-diagnostics %s

// What is not as the experts are, to the last type, stays a product of its own, with the reason.

// Two shared experts are one MLP twice as wide.
// CHECK-LABEL: func.func @two_shared_experts
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
!wide2 = !qfuse.qtensor<tensor<160x256xf8E4M3FN>, #weight>
!narrow2 = !qfuse.qtensor<tensor<256x160xf8E4M3FN>, #weight>
!sh2 = tensor<1x?x160xbf16>
!shq2 = !qfuse.qtensor<tensor<1x?x160xf8E4M3FN>, #act>
func.func @two_shared_experts(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide2, %up: !wide2, %last: !narrow2) -> !x {
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
  }) {parts = array<i64: 160>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide2) -> !sh2
  %su = "qfuse.matmul"(%x, %up) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 160>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide2) -> !sh2
  %sh = "qfuse.glu"(%sg, %su) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!sh2, !sh2) -> !sh2
  %shq = "qfuse.quantize"(%sh) : (!sh2) -> !shq2
  // expected-remark @+1 {{shared-expert: refused at qfuse.matmul: the shared expert has 160 hidden features, an expert 80: its down product adds up all of them before it rounds, as several experts would not; use n_shared_experts = 1}}
  %shared = "qfuse.matmul"(%shq, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!shq2, !narrow2) -> !x
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// Scales of other blocks.
// CHECK-LABEL: func.func @other_scheme
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
#coarse = #qfuse.scheme<array<i64: 64, 128>, f32, "none", "none", "row_major">
!wide2 = !qfuse.qtensor<tensor<80x256xf8E4M3FN>, #coarse>
func.func @other_scheme(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide2, %up: !wide2, %last: !narrow) -> !x {
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
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide2) -> !sh
  %su = "qfuse.matmul"(%x, %up) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide2) -> !sh
  %sh = "qfuse.glu"(%sg, %su) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!sh, !sh) -> !sh
  %shq = "qfuse.quantize"(%sh) : (!sh) -> !shq
  // expected-remark @+1 {{shared-expert: refused at qfuse.matmul: a weight of the shared expert is}}
  %shared = "qfuse.matmul"(%shq, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!shq, !narrow) -> !x
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// Codes of another type.
// CHECK-LABEL: func.func @other_storage
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
!narrow2 = !qfuse.qtensor<tensor<256x80xf8E5M2>, #weight>
func.func @other_storage(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow2) -> !x {
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
  // expected-remark @+1 {{shared-expert: refused at qfuse.matmul: a weight of the shared expert is}}
  %shared = "qfuse.matmul"(%shq, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!shq, !narrow2) -> !x
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// Another activation.
// CHECK-LABEL: func.func @other_activation
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
func.func @other_activation(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> !x {
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
  // expected-remark @+1 {{shared-expert: refused at qfuse.glu: the shared expert computes gelu, the experts silu}}
  %sh = "qfuse.glu"(%sg, %su) {act = "gelu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!sh, !sh) -> !sh
  %shq = "qfuse.quantize"(%sh) : (!sh) -> !shq
  %shared = "qfuse.matmul"(%shq, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!shq, !narrow) -> !x
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// Another input.
// CHECK-LABEL: func.func @other_input
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
func.func @other_input(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow, %z: !xq) -> !x {
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
  // expected-remark @+1 {{shared-expert: refused at qfuse.matmul: the shared expert reads another value than the experts; give them one quantized input}}
  %sg = "qfuse.matmul"(%z, %gate) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide) -> !sh
  %su = "qfuse.matmul"(%z, %up) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide) -> !sh
  %sh = "qfuse.glu"(%sg, %su) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!sh, !sh) -> !sh
  %shq = "qfuse.quantize"(%sh) : (!sh) -> !shq
  %shared = "qfuse.matmul"(%shq, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!shq, !narrow) -> !x
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// Somebody else reads the shared expert's result.
// CHECK-LABEL: func.func @read_elsewhere
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
func.func @read_elsewhere(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> (!x, !x) {
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
  // expected-remark @+1 {{shared-expert: refused at qfuse.add: a result of qfuse.matmul has another reader; let the layer alone read it}}
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out, %shared : !x, !x
}

// -----

// Somebody else reads what the routing makes.
// CHECK-LABEL: func.func @slots_read_elsewhere
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
func.func @slots_read_elsewhere(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> (!x, !slots) {
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
  // expected-remark @+1 {{shared-expert: refused at qfuse.add: a result of qfuse.route has another reader; let the layer alone read it}}
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out, %slots : !x, !slots
}

// -----

// A gate of the shared expert, as in Qwen2-MoE: how much it counts differs from token to token.
// CHECK-LABEL: func.func @gate_of_shared_expert
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
func.func @gate_of_shared_expert(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow, %share: tensor<1x?x1xbf16>) -> !x {
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
  %gated = "qfuse.mul"(%share, %shared) : (tensor<1x?x1xbf16>, !x) -> !x
  // expected-remark @+1 {{shared-expert: refused at qfuse.add: qfuse.mul is part of the shared expert, but of no other expert}}
  %out = "qfuse.add"(%sum, %gated) : (!x, !x) -> !x
  return %out : !x
}

// -----

// A bias.
// CHECK-LABEL: func.func @bias
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
func.func @bias(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow, %bias: tensor<256xbf16>) -> !x {
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
  %biased = "qfuse.add"(%shared, %bias) : (!x, tensor<256xbf16>) -> !x
  // expected-remark @+1 {{shared-expert: refused at qfuse.add: qfuse.add is part of the shared expert, but of no other expert}}
  %out = "qfuse.add"(%sum, %biased) : (!x, !x) -> !x
  return %out : !x
}

// -----

// An epilogue in between.
// CHECK-LABEL: func.func @epilogue
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
func.func @epilogue(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> !x {
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
    %twice = arith.addf %acc, %acc : f32
    "qfuse.yield"(%twice) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!shq, !narrow) -> !x
  // expected-remark @+1 {{shared-expert: refused at qfuse.add: an epilogue is already fused into one of the products; run this pass first of all fusions}}
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// The residual would be added before the shared expert is.
// CHECK-LABEL: func.func @residual_first
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
func.func @residual_first(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow, %residual: !x) -> !x {
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
  %sum = "qfuse.combine"(%y, %slots, %weights, %residual) {operandSegmentSizes = array<i32: 1, 1, 1, 1>} : (!y, !slots, tensor<?x2xf32>, !x) -> !x
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
  // expected-remark @+1 {{shared-expert: refused at qfuse.add: the sum takes a residual already; run this pass before the epilogues'}}
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// Hidden values are quantized on one side alone.
// CHECK-LABEL: func.func @quantized_on_one_side
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
func.func @quantized_on_one_side(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> !x {
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
  %shared = "qfuse.matmul"(%sh, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!sh, !narrow) -> !x
  // expected-remark @+1 {{shared-expert: refused at qfuse.add: the shared expert's last product reads what qfuse.glu makes, the experts' what qfuse.quantize does; quantize both or none}}
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// Scales given beforehand (static ones) for the shared expert alone.
// CHECK-LABEL: func.func @static_scales
// CHECK:         "qfuse.route"(%arg3) {num_experts = 4 : i64} :
// CHECK:         "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<1x?x256xbf16>
!xq = !qfuse.qtensor<tensor<1x?x256xf8E4M3FN>, #act>
!xs = !qfuse.qtensor<tensor<1x?x256xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 256>, f32, "none", "none", "row_major">>
!both = !qfuse.qtensor<tensor<4x208x256xf8E4M3FN>, #weight>
!down = !qfuse.qtensor<tensor<4x256x80xf8E4M3FN>, #weight>
!h = tensor<?x2x80xbf16>
!hq = !qfuse.qtensor<tensor<?x2x80xf8E4M3FN>, #act>
!y = tensor<?x2x256xbf16>
!slots = tensor<?x2xi32>
!wide = !qfuse.qtensor<tensor<80x256xf8E4M3FN>, #weight>
!narrow = !qfuse.qtensor<tensor<256x80xf8E4M3FN>, #weight>
!sh = tensor<1x?x80xbf16>
!shq = !qfuse.qtensor<tensor<1x?x80xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 80>, f32, "none", "none", "row_major">>
func.func @static_scales(%v: !x, %s: tensor<1xf32>, %t: tensor<1xf32>, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> !x {
  %x = "qfuse.quantize"(%v) : (!x) -> !xq
  %xs = "qfuse.quantize"(%v, %s) : (!x, tensor<1xf32>) -> !xs
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
  %sg = "qfuse.matmul"(%xs, %gate) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xs, !wide) -> !sh
  %su = "qfuse.matmul"(%xs, %up) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xs, !wide) -> !sh
  %sh = "qfuse.glu"(%sg, %su) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!sh, !sh) -> !sh
  %shq = "qfuse.quantize"(%sh, %t) : (!sh, tensor<1xf32>) -> !shq
  %shared = "qfuse.matmul"(%shq, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!shq, !narrow) -> !x
  // expected-remark @+1 {{shared-expert: refused at qfuse.add: the shared expert's hidden values alone are quantized by a scale given beforehand; quantize both alike}}
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// A static scale for each, not one for both.
// CHECK-LABEL: func.func @two_static_scales
// CHECK:         "qfuse.route"(%arg3) {num_experts = 4 : i64} :
// CHECK:         "qfuse.add"
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
func.func @two_static_scales(%v: !x, %s: tensor<1xf32>, %t: tensor<1xf32>, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> !x {
  %x = "qfuse.quantize"(%v, %s) : (!x, tensor<1xf32>) -> !xs
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 4 : i64} : (tensor<?x2xi64>) -> (!slots, !slots, tensor<5xi32>)
  %g, %u = "qfuse.group_matmul"(%x, %both, %indptr, %tokens) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a, %b) : (f32, f32) -> ()
  }) {parts = array<i64: 80, 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!xs, !both, tensor<5xi32>, !slots) -> (!h, !h)
  %h = "qfuse.glu"(%g, %u) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!h, !h) -> !h
  %hq = "qfuse.quantize"(%h, %s) : (!h, tensor<1xf32>) -> !hs
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
  // expected-remark @+1 {{shared-expert: refused at qfuse.quantize: the shared expert's hidden values are quantized by another scale than the experts'; quantize them by one}}
  %shq = "qfuse.quantize"(%sh, %t) : (!sh, tensor<1xf32>) -> !shq
  %shared = "qfuse.matmul"(%shq, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!shq, !narrow) -> !x
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// The second of two: one alone is everybody's.
// CHECK-LABEL: func.func @one_after_the_other
// CHECK:         "qfuse.combine"{{.*}}tensor<?x3xi32>, tensor<?x2xf32>
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
func.func @one_after_the_other(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> !x {
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
  // expected-remark @+1 {{shared-expert: refused at qfuse.combine: the experts have a shared one already}}
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
  // expected-remark @+1 {{shared-expert: fired at qfuse.add}}
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  %sg2 = "qfuse.matmul"(%x, %gate) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide) -> !sh
  %su2 = "qfuse.matmul"(%x, %up) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide) -> !sh
  %sh2 = "qfuse.glu"(%sg2, %su2) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!sh, !sh) -> !sh
  %shq2 = "qfuse.quantize"(%sh2) : (!sh) -> !shq
  %shared2 = "qfuse.matmul"(%shq2, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!shq, !narrow) -> !x
  %more = "qfuse.add"(%out, %shared2) : (!x, !x) -> !x
  return %more : !x
}

// -----

// A shared expert that runs more often than the experts.
// CHECK-LABEL: func.func @in_a_loop
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
func.func @in_a_loop(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> !x {
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
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  %out = scf.for %i = %zero to %one step %one iter_args(%before = %sum) -> (!x) {
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
  // expected-remark @+1 {{shared-expert: refused at qfuse.add: qfuse.route stands in another block than qfuse.add, which may run more often; compute both in one block}}
    %each = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
    scf.yield %each : !x
  }
  return %out : !x
}

// -----

// A weight that is another in each call, as far as anybody knows.
// CHECK-LABEL: func.func @weight_made_at_run_time
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
func.func @weight_made_at_run_time(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %first: !wide, %up: !wide, %last: !narrow) -> !x {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 4 : i64} : (tensor<?x2xi64>) -> (!slots, !slots, tensor<5xi32>)
  // expected-remark @+1 {{shared-expert: refused at qfuse.group_matmul: a weight is computed at run time, so joining it would cost a copy per call; pass the weight as a parameter}}
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
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  %gate = scf.for %i = %zero to %one step %one iter_args(%before = %first) -> (!wide) {
    scf.yield %before : !wide
  }
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
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}

// -----

// A product that is rounded less.
// CHECK-LABEL: func.func @other_rounding
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
func.func @other_rounding(%x: !xq, %ids: tensor<?x2xi64>, %weights: tensor<?x2xf32>, %both: !both, %down: !down, %gate: !wide, %up: !wide, %last: !narrow) -> !x {
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
  // expected-remark @+1 {{shared-expert: refused at qfuse.matmul: the shared expert's qfuse.matmul makes tensor<1x?x80xf32>, the experts' tensor<?x2x80xbf16>}}
  %sg = "qfuse.matmul"(%x, %gate) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide) -> tensor<1x?x80xf32>
  %su = "qfuse.matmul"(%x, %up) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 80>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wide) -> tensor<1x?x80xf32>
  %sh = "qfuse.glu"(%sg, %su) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<1x?x80xf32>, tensor<1x?x80xf32>) -> tensor<1x?x80xf32>
  %shq = "qfuse.quantize"(%sh) : (tensor<1x?x80xf32>) -> !shq
  %shared = "qfuse.matmul"(%shq, %last) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!shq, !narrow) -> !x
  %out = "qfuse.add"(%sum, %shared) : (!x, !x) -> !x
  return %out : !x
}
