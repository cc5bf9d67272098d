// RUN: qfuse-opt --qfuse-expand-quantize --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-expand-quantize --split-input-file --verify-diagnostics %s

// Two products of one value share its quantization.
// CHECK-LABEL: func.func @shared
// CHECK-SAME:    %[[X:.+]]: tensor<?x512xbf16>, %[[A:[^:]+]]: {{.*}}, %[[B:[^:]+]]: !qfuse
// CHECK-NEXT:    %[[Q:.+]] = "qfuse.quantize"(%[[X]])
// CHECK-NEXT:    "qfuse.matmul"(%[[Q]], %[[A]])
// CHECK-NOT:     "qfuse.quantize"
// CHECK:         "qfuse.matmul"(%[[Q]], %[[B]])
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @shared(%x: !x, %a: !w, %b: !w) -> (!y, !y) {
  // expected-remark @+1 {{expand-quantized-input: fired at qfuse.matmul}}
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #act, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{expand-quantized-input: fired at qfuse.matmul}}
  %1 = "qfuse.matmul"(%x, %b) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #act, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  return %0, %1 : !y, !y
}

// -----

// Without the attribute the product stays weight-only: its input is never quantized silently.
// CHECK-LABEL: func.func @weight_only
// CHECK-NOT:     "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @weight_only(%x: !x, %a: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  return %0 : !y
}

// -----

// Groups of x that reach over the blocks of w cannot be scaled together.
// CHECK-LABEL: func.func @other_group
// CHECK-NOT:     "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
#g96 = #qfuse.scheme<array<i64: 1, 96>, f32, "none", "none", "row_major">
func.func @other_group(%x: !x, %a: !w) -> !y {
  // expected-remark @+1 {{refused at qfuse.matmul: x is to be scaled per 96 elements of K, but w is}}
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #g96, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  return %0 : !y
}

// -----

// A plain weight has no scales to go with a quantized x.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @plain_weight(%x: !x, %a: tensor<1400x512xbf16>) -> !y {
  // expected-remark @+1 {{x is to be quantized, but w is tensor<1400x512xbf16>; quantize w, too}}
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #act, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<1400x512xbf16>) -> !y
  return %0 : !y
}

// -----

// What is no scheme, and a scheme that cannot be quantized to, name their fault.
// CHECK-LABEL: func.func @no_schemes
// CHECK-NOT:     "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @no_schemes(%x: !x, %a: !w) -> (!y, !y, !y, !y) {
  // expected-remark @+1 {{refused at qfuse.matmul: qfuse.input_scheme is "fp8"; give it a #qfuse.scheme}}
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = "fp8", parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{refused at qfuse.matmul: qfuse.input_scheme: block [128] is not two positive extents}}
  %1 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #qfuse.scheme<array<i64: 128>, f32, "none", "none", "row_major">, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{refused at qfuse.matmul: qfuse.input_scheme: the block of a scheme is an array<i64: rows, columns>, not 128 : i64}}
  %2 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #qfuse.scheme<128 : i64, f32, "none", "none", "row_major">, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{refused at qfuse.matmul: qfuse.input_scheme: dynamic quantization blocks are [1, group], not [128, 128]}}
  %3 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #weight, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  return %0, %1, %2, %3 : !y, !y, !y, !y
}

// -----

// Beside a weight of fewer than eight bits, x has eight; groups of either fit into the other's.
// CHECK-LABEL: func.func @int4_weight
// CHECK:         "qfuse.quantize"(%arg0) : (tensor<?x512xbf16>) -> !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1"
// CHECK-NOT:     "qfuse.quantize"
#q8_1 = #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">
#odd = #qfuse.scheme<array<i64: 1, 96>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 1, 128>, f16, "int4", "none", "row_major">
!x = tensor<?x512xbf16>
!y = tensor<?x1400xbf16>
!w4 = !qfuse.qtensor<tensor<1400x512xi4>, #weight>
func.func @int4_weight(%x: !x, %a: !w4) -> (!y, !y) {
  // expected-remark @+1 {{expand-quantized-input: fired at qfuse.matmul}}
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #q8_1, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w4) -> !y
  // expected-remark @+1 {{refused at qfuse.matmul: x is to be scaled per 96 elements of K, but w is !qfuse.qtensor<tensor<1400x512xi4>, #qfuse.scheme<array<i64: 1, 128>, f16, "int4", "none", "row_major">>; quantize x in groups that divide w's}}
  %1 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #odd, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w4) -> !y
  return %0, %1 : !y, !y
}

// -----

// Activations are E4M3 also beside an E5M2 weight, as the torch operator computes it.
// CHECK-LABEL: func.func @e5m2_weight
// CHECK:         "qfuse.quantize"(%arg0) : (tensor<?x512xbf16>) -> !qfuse.qtensor<tensor<?x512xf8E4M3FN>
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!y = tensor<?x1400xbf16>
!w5 = !qfuse.qtensor<tensor<1400x512xf8E5M2>, #weight>
func.func @e5m2_weight(%x: !x, %a: !w5) -> !y {
  // expected-remark @+1 {{expand-quantized-input: fired at qfuse.matmul}}
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #act, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w5) -> !y
  return %0 : !y
}
