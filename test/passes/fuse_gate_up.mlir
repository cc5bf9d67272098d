// RUN: qfuse-opt --qfuse-fuse-gate-up --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-gate-up --split-input-file --verify-diagnostics %s

// N is no multiple of the scale block: up begins at row 1408, its codes and scales as they were.
// CHECK-LABEL: func.func @ragged
// CHECK-SAME:    %[[X:[^:]+]]: {{.*}}, %[[G:[^:]+]]: {{.*}}, %[[U:[^:]+]]: !qfuse
// CHECK:         %[[W:.+]] = "qfuse.concat"(%[[G]], %[[U]])
// CHECK-SAME:      tensor<2808x512xf8E4M3FN>
// CHECK:         "qfuse.matmul"(%[[X]], %[[W]])
// CHECK-NEXT:    ^bb0(%[[GATE:.+]]: f32, %[[UP:.+]]: f32):
// The roundings of the separate products and of the activation are kept.
// CHECK:           %[[G16:.+]] = arith.truncf %[[GATE]] : f32 to bf16
// CHECK:           arith.truncf %[[UP]] : f32 to bf16
// CHECK:           math.exp
// CHECK:           %[[ACT:.+]] = arith.divf
// CHECK:           arith.truncf %[[ACT]] : f32 to bf16
// CHECK:           arith.mulf
// CHECK:           "qfuse.yield"
// CHECK:         parts = array<i64: 1400, 1400>
// CHECK-NOT:     "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @ragged(%x: !xq, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches, 11728 B a row}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// The input may have other readers: it is read once less, not recomputed.
// CHECK-LABEL: func.func @input_read_elsewhere
// CHECK:         "qfuse.concat"
// CHECK:         "qfuse.dequantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @input_read_elsewhere(%x: !xq, %g: !w, %u: !w) -> (!y, !x) {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  %3 = "qfuse.dequantize"(%x) : (!xq) -> !x
  return %2, %3 : !y, !x
}

// -----

// Two inputs need two products.
// CHECK-LABEL: func.func @two_inputs
// CHECK:         "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @two_inputs(%x: !xq, %z: !xq, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%z, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{refused at qfuse.glu: the products read different values, argument 0 and argument 1; share one quantized input}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// gate is read by something else, which would compute it again.
// CHECK-LABEL: func.func @gate_read_twice
// CHECK:         "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @gate_read_twice(%x: !xq, %g: !w, %u: !w) -> (!y, !y) {
  // expected-remark @+1 {{the product has 2 readers, and fusing one would compute it again for the others}}
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2, %0 : !y, !y
}

// -----

// Scales of other blocks cannot stand in one weight.
// CHECK-LABEL: func.func @other_blocks
// CHECK:         "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
!w2 = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #qfuse.scheme<array<i64: 64, 128>, f32, "none", "none", "row_major">>
func.func @other_blocks(%x: !xq, %g: !w, %u: !w2) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w2) -> !y
  // expected-remark @+1 {{weight schemes differ: #qfuse.scheme<array<i64: 128, 128>}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Codes of another storage type cannot stand in one weight; they are never quantized again.
// CHECK-LABEL: func.func @other_storage
// CHECK:         "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
!w5 = !qfuse.qtensor<tensor<1400x512xf8E5M2>, #weight>
func.func @other_storage(%x: !xq, %g: !w, %u: !w5) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w5) -> !y
  // expected-remark @+1 {{weights are stored as f8E4M3FN and f8E5M2; quantize both alike}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// A weight made at run time would be joined on every call.
// CHECK-LABEL: func.func @computed_weight
// CHECK:         "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @computed_weight(%x: !xq, %g: !w, %b: tensor<1400x512xbf16>, %v: tensor<?x512xbf16>) -> !y {
  %c = "qfuse.silu"(%b) : (tensor<1400x512xbf16>) -> tensor<1400x512xbf16>
  %0 = "qfuse.matmul"(%v, %b) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<1400x512xbf16>) -> !y
  %1 = "qfuse.matmul"(%v, %c) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<1400x512xbf16>) -> !y
  // expected-remark @+1 {{a weight is computed at run time, so joining it would cost a copy per call}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// A bias on one side makes that side no plain product.
// CHECK-LABEL: func.func @bias_on_one_side
// CHECK:         "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @bias_on_one_side(%x: !xq, %g: !w, %u: !w, %b: tensor<1400xbf16>) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %2 = "qfuse.add"(%0, %b) : (!y, tensor<1400xbf16>) -> !y
  // expected-remark @+1 {{gate-up: refused at qfuse.glu: of gate and up, only gate has a bias; give both one, or none}}
  %3 = "qfuse.glu"(%2, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %3 : !y
}

// -----

// A product that has an epilogue already is no plain product.
// CHECK-LABEL: func.func @epilogue_first
// CHECK:         "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @epilogue_first(%x: !xq, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    %n = arith.negf %acc : f32
    "qfuse.yield"(%n) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{an epilogue is already fused into one of the products; run this pass before qfuse-fuse-epilogue}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Merging two products that still quantize their inputs would lose that.
// CHECK-LABEL: func.func @input_scheme
// CHECK:         "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @input_scheme(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #act, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #act, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{refused at qfuse.glu: the quantization of an input is still part of the product; run qfuse-expand-quantize first}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// The products run once, the GLU many times.
// CHECK-LABEL: func.func @glu_in_a_loop
// CHECK:         scf.for
// CHECK-NOT:     "qfuse.matmul"
// CHECK:         "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @glu_in_a_loop(%x: !xq, %g: !w, %u: !w, %n: index, %y: !y) -> !y {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %3 = scf.for %i = %c0 to %n step %c1 iter_args(%last = %y) -> (!y) {
    // expected-remark @+1 {{refused at qfuse.glu: qfuse.matmul stands in another block than qfuse.glu}}
    %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
    scf.yield %2 : !y
  }
  return %3 : !y
}

// -----

// A weight carried around a loop is another one each time.
// CHECK-LABEL: func.func @weight_of_a_loop
// CHECK:         "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @weight_of_a_loop(%x: !xq, %g: !w, %u: !w, %n: index, %y: !y) -> !y {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %3:3 = scf.for %i = %c0 to %n step %c1 iter_args(%last = %y, %a = %g, %b = %u) -> (!y, !w, !w) {
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %b) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
    // expected-remark @+1 {{a weight is computed at run time}}
    %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
    scf.yield %2, %b, %a : !y, !w, !w
  }
  return %3#0 : !y
}

// -----

// The halves of one product are none of two.
// CHECK-LABEL: func.func @halves
// CHECK:         "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @halves(%x: !xq, %w: !w) -> tensor<?x700xbf16> {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{gate-up: refused at qfuse.glu: gate and up are halves of one value; compute them by two products}}
  %1 = "qfuse.glu"(%0) {act = "silu", operandSegmentSizes = array<i32: 1, 0, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y) -> tensor<?x700xbf16>
  return %1 : tensor<?x700xbf16>
}

// -----

// A GLU that quantizes is not taken apart.
// CHECK-LABEL: func.func @glu_quantizes
// CHECK:         "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @glu_quantizes(%x: !xq, %g: !w, %u: !w) -> (!y, !yq) {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{refused at qfuse.glu: the GLU already quantizes its result; run this pass before qfuse-fuse-act-quantize}}
  %2:2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 1>} : (!y, !y) -> (!y, !yq)
  return %2#0, %2#1 : !y, !yq
}

// -----

// Gate and up are rounded as before, then clamped.
// CHECK-LABEL: func.func @clamped
// CHECK:         ^bb0(%[[GATE:.+]]: f32, %[[UP:.+]]: f32):
// CHECK-DAG:       %[[LOW:.+]] = arith.constant -7.000000e+00
// CHECK-DAG:       %[[HIGH:.+]] = arith.constant 7.000000e+00
// CHECK:           %[[G16:.+]] = arith.truncf %[[GATE]] : f32 to bf16
// CHECK-NEXT:      %[[G:.+]] = arith.extf %[[G16]]
// CHECK-NEXT:      %[[U16:.+]] = arith.truncf %[[UP]] : f32 to bf16
// CHECK-NEXT:      %[[U:.+]] = arith.extf %[[U16]]
// CHECK-NEXT:      arith.minimumf %[[G]], %[[HIGH]]
// CHECK-NEXT:      %[[MIN:.+]] = arith.minimumf %[[U]], %[[HIGH]]
// CHECK-NEXT:      arith.maximumf %[[MIN]], %[[LOW]]
// CHECK:           math.exp
// CHECK-NOT:     "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @clamped(%x: !xq, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", limit = 7.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}
