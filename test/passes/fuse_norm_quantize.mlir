// RUN: qfuse-opt --qfuse-fuse-norm-quantize --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-norm-quantize --split-input-file --verify-diagnostics %s

// All readers want the quantized value: it is the only result.
// CHECK-LABEL: func.func @only_quantized
// CHECK-NEXT:    %[[Q:.+]] = "qfuse.rms_norm"
// CHECK-SAME:      array<i32: 0, 1, 0, 0>
// CHECK-NEXT:    return %[[Q]]
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @only_quantized(%x: !x, %n: tensor<512xbf16>) -> !xq {
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  // expected-remark @+1 {{norm-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!x) -> !xq
  return %1 : !xq
}

// -----

// A router reads the value itself: one norm yields both.
// CHECK-LABEL: func.func @mixed_readers
// CHECK-NEXT:    %[[Y:.+]]:2 = "qfuse.rms_norm"
// CHECK-SAME:      array<i32: 1, 1, 0, 0>
// CHECK-NEXT:    return %[[Y]]#1, %[[Y]]#0
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @mixed_readers(%x: !x, %n: tensor<512xbf16>) -> (!xq, !x) {
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  // expected-remark @+1 {{norm-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!x) -> !xq
  return %1, %0 : !xq, !x
}

// -----

// The residual add before it joins, and the new residual comes out.
// CHECK-LABEL: func.func @residual_and_quantize
// CHECK-SAME:    %[[X:[^:]+]]: tensor<?x512xbf16>, %[[R:[^:]+]]: tensor<?x512xbf16>, %[[W:[^:]+]]: tensor
// CHECK-NEXT:    %[[Y:.+]]:2 = "qfuse.rms_norm"(%[[X]], %[[W]], %[[R]])
// CHECK-SAME:      array<i32: 0, 1, 0, 1>
// CHECK-NEXT:    return %[[Y]]#0, %[[Y]]#1
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @residual_and_quantize(%x: !x, %r: !x, %n: tensor<512xbf16>) -> (!xq, !x) {
  %h = "qfuse.add"(%x, %r) : (!x, !x) -> !x
  // expected-remark @+1 {{norm-residual: fired}}
  %0 = "qfuse.rms_norm"(%h, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  // expected-remark @+1 {{norm-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!x) -> !xq
  return %1, %h : !xq, !x
}

// -----

// A reader of the sum that comes before the norm still gets it.
// CHECK-LABEL: func.func @residual_read_before_the_norm
// CHECK-NEXT:    %[[Y:.+]]:2 = "qfuse.rms_norm"
// CHECK-NEXT:    "qfuse.silu"(%[[Y]]#1)
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @residual_read_before_the_norm(%x: !x, %r: !x, %n: tensor<512xbf16>) -> (!x, !x) {
  %h = "qfuse.add"(%x, %r) : (!x, !x) -> !x
  %s = "qfuse.silu"(%h) : (!x) -> !x
  // expected-remark @+1 {{norm-residual: fired}}
  %0 = "qfuse.rms_norm"(%h, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  return %0, %s : !x, !x
}

// -----

// Nobody needs the new residual: it is no result.
// CHECK-LABEL: func.func @residual_read_by_nobody
// CHECK:         array<i32: 1, 0, 0, 0>
// CHECK-NOT:     "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @residual_read_by_nobody(%x: !x, %r: !x, %n: tensor<512xbf16>) -> !x {
  %h = "qfuse.add"(%x, %r) : (!x, !x) -> !x
  // expected-remark @+1 {{norm-residual: fired}}
  %0 = "qfuse.rms_norm"(%h, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  return %0 : !x
}

// -----

// Two formats of one norm: it yields both, in the order of their text.
// CHECK-LABEL: func.func @two_formats
// CHECK-NEXT:    %[[Y:.+]]:2 = "qfuse.rms_norm"
// CHECK-SAME:      array<i32: 0, 1, 1, 0>
// CHECK-SAME:      -> (!qfuse.qtensor<tensor<?x512xf8E4M3FN>{{.*}}, !qfuse.qtensor<tensor<?x512xi8>
// CHECK-NEXT:    return %[[Y]]#1, %[[Y]]#0
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!xr = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!xs = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
func.func @two_formats(%x: !x, %n: tensor<512xbf16>) -> (!xs, !xq) {
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  // expected-remark @+1 {{norm-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!x) -> !xs
  // expected-remark @+1 {{norm-quantize: fired}}
  %2 = "qfuse.quantize"(%0) : (!x) -> !xq
  return %1, %2 : !xs, !xq
}

// -----

// With a residual, and a reader of the value itself: all results at once.
// CHECK-LABEL: func.func @all_results
// CHECK-SAME:    %[[X:[^:]+]]: tensor<?x512xbf16>, %[[R:[^:]+]]: tensor<?x512xbf16>, %[[W:[^:]+]]: tensor
// CHECK-NEXT:    %[[Y:.+]]:4 = "qfuse.rms_norm"(%[[X]], %[[W]], %[[R]])
// CHECK-SAME:      array<i32: 1, 1, 1, 1>
// CHECK-NEXT:    return %[[Y]]#1, %[[Y]]#2, %[[Y]]#0, %[[Y]]#3
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!xr = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!xs = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
func.func @all_results(%x: !x, %r: !x, %n: tensor<512xbf16>) -> (!xq, !xr, !x, !x) {
  %h = "qfuse.add"(%x, %r) : (!x, !x) -> !x
  // expected-remark @+1 {{norm-residual: fired}}
  %0 = "qfuse.rms_norm"(%h, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  // expected-remark @+1 {{norm-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!x) -> !xq
  // expected-remark @+1 {{norm-quantize: fired}}
  %2 = "qfuse.quantize"(%0) : (!x) -> !xr
  return %1, %2, %0, %h : !xq, !xr, !x, !x
}

// -----

// A norm yields two formats; the third is quantized apart.
// CHECK-LABEL: func.func @three_formats
// CHECK:         %[[Y:.+]]:3 = "qfuse.rms_norm"
// CHECK-NEXT:    "qfuse.quantize"(%[[Y]]#0)
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!xr = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!xs = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
func.func @three_formats(%x: !x, %n: tensor<512xbf16>) -> (!xq, !xr, !xs) {
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  // expected-remark @+1 {{norm-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!x) -> !xq
  // expected-remark @+1 {{norm-quantize: fired}}
  %2 = "qfuse.quantize"(%0) : (!x) -> !xr
  // expected-remark @+1 {{this reader wants !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>; quantize for the readers of a norm in at most 2 formats}}
  %3 = "qfuse.quantize"(%0) : (!x) -> !xs
  return %1, %2, %3 : !xq, !xr, !xs
}

// -----

// The layout of scales alone makes no other format.
// CHECK-LABEL: func.func @two_layouts
// CHECK:         "qfuse.rms_norm"
// CHECK-NEXT:    "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!xr = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!xs = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!xc = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>
func.func @two_layouts(%x: !x, %n: tensor<512xbf16>) -> (!xq, !xc) {
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  // expected-remark @+1 {{norm-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!x) -> !xq
  // expected-remark @+1 {{differs in the layout of its scales alone; quantize for all readers in one layout}}
  %2 = "qfuse.quantize"(%0) : (!x) -> !xc
  return %1, %2 : !xq, !xc
}

// -----

// What is quantized is rounded first, unless asked otherwise; a norm does one or the other.
// CHECK-LABEL: func.func @quantizes_what_is_not_rounded
// CHECK:         quantize_rounding = "f32", resultSegmentSizes = array<i32: 1, 1, 0, 0>
// CHECK-NEXT:    "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!xr = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!xs = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
func.func @quantizes_what_is_not_rounded(%x: !x, %n: tensor<512xbf16>) -> (!xq, !xr) {
  %0, %1 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, quantize_rounding = "f32", resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!x, tensor<512xbf16>) -> (!x, !xq)
  // expected-remark @+1 {{the norm already quantizes with quantize_rounding f32, not value; run the pass once, with one rounding}}
  %2 = "qfuse.quantize"(%0) : (!x) -> !xr
  return %1, %2 : !xq, !xr
}

// -----

// An add that broadcasts is no residual.
// CHECK-LABEL: func.func @broadcast_add
// CHECK:         "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @broadcast_add(%x: !x, %r: tensor<512xbf16>, %n: tensor<512xbf16>) -> !x {
  // expected-remark @+1 {{refused at qfuse.add: the add broadcasts or promotes: tensor<?x512xbf16> and tensor<512xbf16>}}
  %h = "qfuse.add"(%x, %r) : (!x, tensor<512xbf16>) -> !x
  %0 = "qfuse.rms_norm"(%h, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  return %0 : !x
}

// -----

// The fused norm stands where the add stood, before this weight exists.
// CHECK-LABEL: func.func @late_weight
// CHECK:         "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @late_weight(%x: !x, %r: !x, %n: tensor<512xbf16>) -> !x {
  %h = "qfuse.add"(%x, %r) : (!x, !x) -> !x
  %w = "qfuse.silu"(%n) : (tensor<512xbf16>) -> tensor<512xbf16>
  // expected-remark @+1 {{refused at qfuse.rms_norm: the norm's weight is made after the residual add}}
  %0 = "qfuse.rms_norm"(%h, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  return %0 : !x
}

// -----

// The quantization of the residual stream is none of the norm's.
// CHECK-LABEL: func.func @quantize_of_the_residual
// CHECK:         "qfuse.rms_norm"
// CHECK-SAME:      array<i32: 1, 0, 0, 1>
// CHECK:         "qfuse.quantize"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @quantize_of_the_residual(%x: !x, %r: !x, %n: tensor<512xbf16>) -> (!x, !xq) {
  %0, %h = "qfuse.rms_norm"(%x, %n, %r) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 1, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 1>} : (!x, tensor<512xbf16>, !x) -> (!x, !x)
  %1 = "qfuse.quantize"(%h) : (!x) -> !xq
  return %0, %1 : !x, !xq
}

// -----

// The norm of a loop, whose weight changes there, does not move out to the add.
// CHECK-LABEL: func.func @norm_in_a_loop
// CHECK:         "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @norm_in_a_loop(%x: !x, %r: !x, %n: index, %a: tensor<512xbf16>, %b: tensor<512xbf16>) -> !x {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %h = "qfuse.add"(%x, %r) : (!x, !x) -> !x
  %0:3 = scf.for %i = %c0 to %n step %c1 iter_args(%y = %x, %w = %a, %v = %b) -> (!x, tensor<512xbf16>, tensor<512xbf16>) {
    // expected-remark @+1 {{refused at qfuse.rms_norm: qfuse.add stands in another block than qfuse.rms_norm}}
    %1 = "qfuse.rms_norm"(%h, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
    scf.yield %1, %v, %w : !x, tensor<512xbf16>, tensor<512xbf16>
  }
  return %0#0 : !x
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
func.func @quantized_twice(%h: !x, %w: tensor<512xbf16>) -> (!xq, !xq) {
  %0 = "qfuse.rms_norm"(%h, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  // expected-remark @+1 {{norm-quantize: fired}}
  %1 = "qfuse.quantize"(%0) : (!x) -> !xq
  // expected-remark @+1 {{refused at qfuse.quantize: the norm already yields this very value; run cse first}}
  %2 = "qfuse.quantize"(%0) : (!x) -> !xq
  return %1, %2 : !xq, !xq
}

// -----

// One sum, two norms: the first computes it, the second reads it from there.
// CHECK-LABEL: func.func @two_norms
// CHECK-NEXT:    %[[Y:.+]]:2 = "qfuse.rms_norm"
// CHECK-NEXT:    "qfuse.rms_norm"(%[[Y]]#1
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @two_norms(%x: !x, %r: !x, %w: tensor<512xbf16>) -> (!x, !x) {
  %h = "qfuse.add"(%x, %r) : (!x, !x) -> !x
  // expected-remark @+1 {{norm-residual: fired}}
  %0 = "qfuse.rms_norm"(%h, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  %1 = "qfuse.rms_norm"(%h, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "after", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  return %0, %1 : !x, !x
}
