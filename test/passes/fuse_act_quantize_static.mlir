// RUN: qfuse-opt --qfuse-fuse-act-quantize --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-act-quantize --split-input-file --verify-diagnostics %s

// GLUs and products whose value is quantized by a scale that is given beforehand.

// The GLU takes the scale, and yields its value, too, where that is read.
// CHECK-LABEL: func.func @glu
// CHECK-SAME:    %[[A:[^:]+]]: tensor<?x1400xbf16>, %[[B:[^:]+]]: tensor<?x1400xbf16>, %[[S:[^:]+]]: tensor<1xf32>
// CHECK-NEXT:    %[[Y:.+]]:2 = "qfuse.glu"(%[[A]], %[[B]], %[[S]])
// CHECK-SAME:      operandSegmentSizes = array<i32: 1, 1, 1>, resultSegmentSizes = array<i32: 1, 1>
// CHECK-NEXT:    return %[[Y]]#1, %[[Y]]#0
#static = #qfuse.scheme<array<i64: 1, 1400>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #static>
func.func @glu(%a: !y, %b: !y, %s: !s) -> (!q, !y) {
  %0 = "qfuse.glu"(%a, %b) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  // expected-remark @+1 {{glu-quantize: fired at qfuse.quantize: saves 1 launch, 2800 B a row}}
  %1 = "qfuse.quantize"(%0, %s) : (!y, !s) -> !q
  return %1, %0 : !q, !y
}

// -----

// A GLU of halves.
// CHECK-LABEL: func.func @glu_of_halves
// CHECK-NEXT:    %[[Q:.+]] = "qfuse.glu"(%{{[^,]+}}, %{{[^)]+}})
// CHECK-SAME:      operandSegmentSizes = array<i32: 1, 0, 1>, resultSegmentSizes = array<i32: 0, 1>
// CHECK-NEXT:    return %[[Q]]
#static = #qfuse.scheme<array<i64: 1, 1400>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #static>
func.func @glu_of_halves(%a: tensor<?x2800xbf16>, %s: !s) -> !q {
  %0 = "qfuse.glu"(%a) {act = "silu", operandSegmentSizes = array<i32: 1, 0, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x2800xbf16>) -> !y
  // expected-remark @+1 {{glu-quantize: fired}}
  %1 = "qfuse.quantize"(%0, %s) : (!y, !s) -> !q
  return %1 : !q
}

// -----

// A product takes it among its operands, and names it where it yields: all 1400 columns have it,
// though several tiles compute them.
// CHECK-LABEL: func.func @product
// CHECK-SAME:    %[[X:[^:]+]]: tensor<?x512xbf16>, %[[W:[^:]+]]: tensor<1400x512xbf16>, %[[S:[^:]+]]: tensor<1xf32>
// CHECK-NEXT:    %[[Q:.+]] = "qfuse.matmul"(%[[X]], %[[W]], %[[S]])
// CHECK-NEXT:    ^bb0(%{{.+}}: f32, %[[P:.+]]: f32):
// CHECK-NEXT:      math.tanh
// CHECK-NEXT:      arith.truncf
// CHECK-NEXT:      %[[V:.+]] = arith.extf
// CHECK-NEXT:      %[[T:.+]] = "qfuse.with_scale"(%[[V]], %[[P]])
// CHECK-NEXT:      "qfuse.yield"(%[[T]])
// CHECK-NEXT:    maps = ["[]"]
// CHECK-NEXT:    return %[[Q]]
#static = #qfuse.scheme<array<i64: 1, 1400>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #static>
func.func @product(%x: !x, %w: !w, %s: !s) -> !q {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %t = math.tanh %acc : f32
    "qfuse.yield"(%t) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{product-quantize: fired at qfuse.quantize: saves 1 launch, 5600 B a row}}
  %1 = "qfuse.quantize"(%0, %s) : (!y, !s) -> !q
  return %1 : !q
}

// -----

// One without an activation, with another reader of its value.
// CHECK-LABEL: func.func @plain_product
// CHECK-NEXT:    %[[Y:.+]]:2 = "qfuse.matmul"
// CHECK:           %[[T:.+]] = "qfuse.with_scale"
// CHECK:           "qfuse.yield"(%{{.+}}, %[[T]])
// CHECK:         return %[[Y]]#1, %[[Y]]#0
#static = #qfuse.scheme<array<i64: 1, 1400>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #static>
func.func @plain_product(%x: !x, %w: !w, %s: !s) -> (!q, !y) {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{product-quantize: fired}}
  %1 = "qfuse.quantize"(%0, %s) : (!y, !s) -> !q
  return %1, %0 : !q, !y
}

// -----

// By two scales: the second stays apart.
// CHECK-LABEL: func.func @two_scales
// CHECK-COUNT-2: "qfuse.quantize"
#static = #qfuse.scheme<array<i64: 1, 1400>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #static>
func.func @two_scales(%x: !x, %w: !w, %a: !y, %b: !y, %s: !s, %other: !s) -> (!q, !q, !q, !q) {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %t = math.tanh %acc : f32
    "qfuse.yield"(%t) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{product-quantize: fired}}
  %1 = "qfuse.quantize"(%0, %s) : (!y, !s) -> !q
  // expected-remark @+1 {{product-quantize: refused at qfuse.quantize: qfuse.matmul already yields !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 1400>, f32, "none", "none", "row_major">> by another scale; quantize all readers of a value to one scheme}}
  %2 = "qfuse.quantize"(%0, %other) : (!y, !s) -> !q
  %3 = "qfuse.glu"(%a, %b) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  // expected-remark @+1 {{glu-quantize: fired}}
  %4 = "qfuse.quantize"(%3, %s) : (!y, !s) -> !q
  // expected-remark @+1 {{by another scale}}
  %5 = "qfuse.quantize"(%3, %other) : (!y, !s) -> !q
  return %1, %2, %4, %5 : !q, !q, !q, !q
}

// -----

// No room for one more operand.
// CHECK-LABEL: func.func @seventh_operand
// CHECK:         "qfuse.quantize"
#static = #qfuse.scheme<array<i64: 1, 1400>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #static>
func.func @seventh_operand(%x: !x, %w: !w, %s: !s, %e0: !s, %e1: !s, %e2: !s, %e3: !s, %e4: !s, %e5: !s) -> !q {
  %0 = "qfuse.matmul"(%x, %w, %e0, %e1, %e2, %e3, %e4, %e5) ({
  ^bb0(%acc: f32, %p0: f32, %p1: f32, %p2: f32, %p3: f32, %p4: f32, %p5: f32):
    %t0 = arith.addf %acc, %p0 : f32
    %t1 = arith.addf %t0, %p1 : f32
    %t2 = arith.addf %t1, %p2 : f32
    %t3 = arith.addf %t2, %p3 : f32
    %t4 = arith.addf %t3, %p4 : f32
    %t5 = arith.addf %t4, %p5 : f32
    "qfuse.yield"(%t5) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = ["[]", "[]", "[]", "[]", "[]", "[]"], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 1, 1>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, !s, !s, !s, !s, !s, !s) -> !y
  // expected-remark @+1 {{product-quantize: refused at qfuse.quantize: the epilogue already has 6 extra operands}}
  %1 = "qfuse.quantize"(%0, %s) : (!y, !s) -> !q
  return %1 : !q
}

// -----

// The scale of the whole value.
// CHECK-LABEL: func.func @scale_of_the_value
// CHECK-COUNT-2: "qfuse.quantize"
#static = #qfuse.scheme<array<i64: 1, 1400>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!w = tensor<1400x512xbf16>
!y = tensor<?x1400xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #static>
func.func @scale_of_the_value(%x: !x, %w: !w, %a: !y, %b: !y) -> (!q, !q) {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %t = math.tanh %acc : f32
    "qfuse.yield"(%t) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %s = "qfuse.tensor_scale"(%0) {storage = f8E4M3FN} : (!y) -> !s
  // expected-remark @+1 {{product-quantize: refused at qfuse.quantize: the scale is that of the whole value, which is known when all of its rows are made}}
  %1 = "qfuse.quantize"(%0, %s) : (!y, !s) -> !q
  %2 = "qfuse.glu"(%a, %b) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  %t = "qfuse.tensor_scale"(%2) {storage = f8E4M3FN} : (!y) -> !s
  // expected-remark @+1 {{glu-quantize: refused at qfuse.quantize: the scale is that of the whole value}}
  %3 = "qfuse.quantize"(%2, %t) : (!y, !s) -> !q
  return %1, %3 : !q, !q
}
