// RUN: qfuse-opt --qfuse-fuse-act-quantize --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-act-quantize --split-input-file --verify-diagnostics %s

// The GLU quantizes what it makes.
// CHECK-LABEL: func.func @glu
// CHECK-NEXT:    %[[Q:.+]] = "qfuse.glu"
// CHECK-SAME:      array<i32: 0, 1>
// CHECK-NEXT:    return %[[Q]]
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @glu(%a: !y, %b: !y) -> !yq {
  %0 = "qfuse.glu"(%a, %b) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  // expected-remark @+1 {{glu-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!y) -> !yq
  return %1 : !yq
}

// -----

// With another reader it yields both.
// CHECK-LABEL: func.func @glu_with_two_readers
// CHECK-NEXT:    %[[Y:.+]]:2 = "qfuse.glu"
// CHECK-NEXT:    return %[[Y]]#1, %[[Y]]#0
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @glu_with_two_readers(%a: !y, %b: !y) -> (!yq, !y) {
  %0 = "qfuse.glu"(%a, %b) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  // expected-remark @+1 {{glu-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!y) -> !yq
  return %1, %0 : !yq, !y
}

// -----

// A product that ends in an activation quantizes the rounded value.
// CHECK-LABEL: func.func @product_with_activation
// CHECK:           math.exp
// CHECK:           arith.truncf %{{.*}} : f32 to bf16
// CHECK:         -> !qfuse.qtensor
// CHECK-NOT:     "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @product_with_activation(%x: !xq, %w: !w) -> !yq {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %n = arith.negf %acc : f32
    %e = math.exp %n : f32
    "qfuse.yield"(%e) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{product-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!y) -> !yq
  return %1 : !yq
}

// -----

// With another reader the product has two results.
// CHECK-LABEL: func.func @product_with_two_readers
// CHECK:         "qfuse.yield"(%[[V:.+]], %[[V]])
// CHECK-NOT:     "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @product_with_two_readers(%x: !xq, %w: !w) -> (!yq, !y) {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %n = arith.negf %acc : f32
    %e = math.exp %n : f32
    "qfuse.yield"(%e) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{product-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!y) -> !yq
  return %1, %0 : !yq, !y
}

// -----

// A plain product keeps its quantization apart.
// CHECK-LABEL: func.func @plain_product
// CHECK:         "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @plain_product(%x: !xq, %w: !w) -> !yq {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{refused at qfuse.quantize: the product has no activation in its epilogue}}
  %1 = "qfuse.quantize"(%0) : (!y) -> !yq
  return %1 : !yq
}

// -----

// One quantized result per producer.
// CHECK-LABEL: func.func @quantizes_already
// CHECK:         "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
!yr = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 1400>, f32, "none", "none", "row_major">>
func.func @quantizes_already(%a: !y, %b: !y) -> (!yq, !yr) {
  %0 = "qfuse.glu"(%a, %b) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  // expected-remark @+1 {{glu-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!y) -> !yq
  // expected-remark @+1 {{refused at qfuse.quantize: qfuse.glu already yields}}
  %2 = "qfuse.quantize"(%0) : (!y) -> !yr
  return %1, %2 : !yq, !yr
}

// -----

// A scale per row needs the whole row, which several tiles of the product compute.
// CHECK-LABEL: func.func @group_of_a_row
// CHECK:         "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
!yr = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 1400>, f32, "none", "none", "row_major">>
func.func @group_of_a_row(%x: !xq, %w: !w) -> !yr {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %e = math.exp %acc : f32
    "qfuse.yield"(%e) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{refused at qfuse.quantize: a group of 1400 lies in several of the tiles of 128 columns that a product computes apart; quantize in groups of 16 to 128, a power of two}}
  %1 = "qfuse.quantize"(%0) : (!y) -> !yr
  return %1 : !yr
}

// -----

// Only a branch needs the quantized value.
// CHECK-LABEL: func.func @in_a_branch
// CHECK:         scf.if
// CHECK:           "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @in_a_branch(%a: !y, %b: !y, %p: i1, %q: !yq) -> !yq {
  %0 = "qfuse.glu"(%a, %b) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  %1 = scf.if %p -> !yq {
    // expected-remark @+1 {{refused at qfuse.quantize: qfuse.glu stands in another block than qfuse.quantize}}
    %2 = "qfuse.quantize"(%0) : (!y) -> !yq
    scf.yield %2 : !yq
  } else {
    scf.yield %q : !yq
  }
  return %1 : !yq
}

// -----

// A second, equal quantization is what cse is for.
// CHECK-LABEL: func.func @quantized_twice
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @quantized_twice(%a: !y, %b: !y) -> (!yq, !yq) {
  %0 = "qfuse.glu"(%a, %b) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  // expected-remark @+1 {{glu-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!y) -> !yq
  // expected-remark @+1 {{refused at qfuse.quantize: qfuse.glu already yields this very value; run cse first}}
  %2 = "qfuse.quantize"(%0) : (!y) -> !yq
  return %1, %2 : !yq, !yq
}

// -----

// What the GLU computes does not change.
// CHECK-LABEL: func.func @clamped_glu
// CHECK-NEXT:    "qfuse.glu"(%arg0, %arg1) {act = "swiglu_oai", alpha = 1.500000e+00 : f64, limit = 7.000000e+00 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 0, 1>}
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
func.func @clamped_glu(%a: !y, %b: !y) -> !yq {
  %0 = "qfuse.glu"(%a, %b) {act = "swiglu_oai", alpha = 1.5 : f64, limit = 7.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  // expected-remark @+1 {{glu-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!y) -> !yq
  return %1 : !yq
}

// -----

// Of several results, one is quantized, after whatever follows its activation; nobody else reads it.
// CHECK-LABEL: func.func @one_of_several_results
// CHECK:         %[[R:.+]]:2 = "qfuse.matmul"
// CHECK:           %[[M:.+]] = arith.mulf
// CHECK:           %[[C:.+]] = arith.truncf %[[M]] : f32 to bf16
// CHECK:           %[[V:.+]] = arith.extf %[[C]]
// CHECK:           "qfuse.yield"(%{{.+}}, %[[V]])
// CHECK:         return %[[R]]#0, %[[R]]#1
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
func.func @one_of_several_results(%x: !x, %w: !w, %b: tensor<1400xbf16>) -> (!y, !yq) {
  %0:2 = "qfuse.matmul"(%x, %w, %b) ({
  ^bb0(%acc: f32, %bias: f32):
    %t = math.tanh %acc : f32
    %m = arith.mulf %t, %bias : f32
    "qfuse.yield"(%acc, %m) : (f32, f32) -> ()
  }) {parts = array<i64: 1400>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!x, !w, tensor<1400xbf16>) -> (!y, !y)
  // expected-remark @+1 {{product-quantize: fired}}
  %1 = "qfuse.quantize"(%0#1) : (!y) -> !yq
  return %0#0, %1 : !y, !yq
}

// -----

// The result beside it has an activation, the one that is quantized has none.
// CHECK-LABEL: func.func @the_other_result
// CHECK:         "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
func.func @the_other_result(%x: !x, %w: !w) -> (!yq, !y) {
  %0:2 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %t = math.tanh %acc : f32
    "qfuse.yield"(%acc, %t) : (f32, f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!x, !w) -> (!y, !y)
  // expected-remark @+1 {{refused at qfuse.quantize: the product has no activation in its epilogue}}
  %1 = "qfuse.quantize"(%0#0) : (!y) -> !yq
  return %1, %0#1 : !yq, !y
}

// -----

// A fifth result has no place.
// CHECK-LABEL: func.func @fifth_result
// CHECK:         "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
func.func @fifth_result(%x: !x, %w: !w) -> (!y, !y, !y, !y, !yq) {
  %0:4 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %t = math.tanh %acc : f32
    "qfuse.yield"(%acc, %t, %acc, %acc) : (f32, f32, f32, f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 1, 1>} : (!x, !w) -> (!y, !y, !y, !y)
  // expected-remark @+1 {{refused at qfuse.quantize: others read the value, too, and the product already has 4 results; quantize in the operation that reads it}}
  %1 = "qfuse.quantize"(%0#1) : (!y) -> !yq
  return %0#0, %0#1, %0#2, %0#3, %1 : !y, !y, !y, !y, !yq
}
