// RUN: qfuse-opt --qfuse-fuse-norm-quantize --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-norm-quantize --split-input-file --verify-diagnostics %s

// Norms whose value is quantized by a scale that is given beforehand.

// The scale goes along with what is quantized by it; the add joins, too.
// CHECK-LABEL: func.func @add_norm_quantize
// CHECK-SAME:    %[[X:[^:]+]]: tensor<?x300xbf16>, %[[R:[^:]+]]: tensor<?x300xbf16>, %[[N:[^:]+]]: tensor<300xbf16>, %[[S:[^:]+]]: tensor<1xf32>
// CHECK-NEXT:    %[[Y:.+]]:2 = "qfuse.rms_norm"(%[[X]], %[[N]], %[[R]], %[[S]])
// CHECK-SAME:      operandSegmentSizes = array<i32: 1, 1, 1, 1, 0>, resultSegmentSizes = array<i32: 0, 1, 0, 1>
// CHECK-NEXT:    return %[[Y]]#0, %[[Y]]#1
#static = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #static>
func.func @add_norm_quantize(%x: !x, %r: !x, %n: !n, %s: !s) -> (!q, !x) {
  %h = "qfuse.add"(%x, %r) : (!x, !x) -> !x
  // expected-remark @+1 {{norm-residual: fired at qfuse.rms_norm: saves 1 launch, 600 B a row}}
  %0 = "qfuse.rms_norm"(%h, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>, rounding = "before"} : (!x, !n) -> !x
  // expected-remark @+1 {{norm-quantize: fired at qfuse.quantize: saves 1 launch, 1200 B a row}}
  %1 = "qfuse.quantize"(%0, %s) : (!x, !s) -> !q
  return %1, %h : !q, !x
}

// -----

// Readers that quantize by one scale share the value.
// CHECK-LABEL: func.func @one_scale
// CHECK-NEXT:    %[[Q:.+]] = "qfuse.rms_norm"
// CHECK-SAME:      resultSegmentSizes = array<i32: 0, 1, 0, 0>
// CHECK-NEXT:    return %[[Q]], %[[Q]]
#static = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #static>
func.func @one_scale(%x: !x, %n: !n, %s: !s) -> (!q, !q) {
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>, rounding = "before"} : (!x, !n) -> !x
  // expected-remark @+1 {{norm-quantize: fired}}
  %1 = "qfuse.quantize"(%0, %s) : (!x, !s) -> !q
  return %1, %1 : !q, !q
}

// -----

// Two scales are two formats of one norm, in the order of the program; a router reads the value.
// CHECK-LABEL: func.func @two_scales
// CHECK-SAME:    %[[S:[^:]+]]: tensor<1xf32>, %[[T:[^:]+]]: tensor<1xf32>) ->
// CHECK-NEXT:    %[[Y:.+]]:3 = "qfuse.rms_norm"(%{{.+}}, %{{.+}}, %[[S]], %[[T]])
// CHECK-SAME:      operandSegmentSizes = array<i32: 1, 1, 0, 1, 1>, resultSegmentSizes = array<i32: 1, 1, 1, 0>
// CHECK-NEXT:    return %[[Y]]#1, %[[Y]]#2, %[[Y]]#0
#static = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #static>
func.func @two_scales(%x: !x, %n: !n, %s: !s, %t: !s) -> (!q, !q, !x) {
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>, rounding = "before"} : (!x, !n) -> !x
  // expected-remark @+1 {{norm-quantize: fired}}
  %1 = "qfuse.quantize"(%0, %s) : (!x, !s) -> !q
  // expected-remark @+1 {{norm-quantize: fired}}
  %2 = "qfuse.quantize"(%0, %t) : (!x, !s) -> !q
  return %1, %2, %0 : !q, !q, !x
}

// -----

// A scale that is given beside one that is found: the same type, and yet two values.
// CHECK-LABEL: func.func @given_and_found
// CHECK-SAME:    %[[S:[^:]+]]: tensor<1xf32>) ->
// CHECK-NEXT:    %[[Y:.+]]:2 = "qfuse.rms_norm"(%{{.+}}, %{{.+}}, %[[S]])
// CHECK-SAME:      operandSegmentSizes = array<i32: 1, 1, 0, 0, 1>, resultSegmentSizes = array<i32: 0, 1, 1, 0>
// CHECK-NEXT:    return %[[Y]]#1, %[[Y]]#0
#static = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #static>
func.func @given_and_found(%x: !x, %n: !n, %s: !s) -> (!q, !q) {
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>, rounding = "before"} : (!x, !n) -> !x
  // expected-remark @+1 {{norm-quantize: fired}}
  %1 = "qfuse.quantize"(%0, %s) : (!x, !s) -> !q
  // expected-remark @+1 {{norm-quantize: fired}}
  %2 = "qfuse.quantize"(%0) : (!x) -> !q
  return %1, %2 : !q, !q
}

// -----

// A third scale stays apart, as q, k and v with a scale each.
// CHECK-LABEL: func.func @three_scales
// CHECK-NEXT:    %[[Y:.+]]:3 = "qfuse.rms_norm"
// CHECK-NEXT:    %[[V:.+]] = "qfuse.quantize"(%[[Y]]#0, %{{.+}})
// CHECK-NEXT:    return %[[Y]]#1, %[[Y]]#2, %[[V]]
#static = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #static>
func.func @three_scales(%x: !x, %n: !n, %s: !s, %t: !s, %u: !s {qfuse.name = "v_proj.input_scale"}) -> (!q, !q, !q) {
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>, rounding = "before"} : (!x, !n) -> !x
  // expected-remark @+1 {{norm-quantize: fired}}
  %1 = "qfuse.quantize"(%0, %s) : (!x, !s) -> !q
  // expected-remark @+1 {{norm-quantize: fired}}
  %2 = "qfuse.quantize"(%0, %t) : (!x, !s) -> !q
  // expected-remark @+1 {{by v_proj.input_scale; quantize for the readers of a norm in at most 2 formats, or by fewer scales}}
  %3 = "qfuse.quantize"(%0, %u) : (!x, !s) -> !q
  return %1, %2, %3 : !q, !q, !q
}

// -----

// The scale of the whole value: known when all of its rows are made.
// CHECK-LABEL: func.func @scale_of_the_value
// CHECK:         "qfuse.quantize"
#static = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #static>
func.func @scale_of_the_value(%x: !x, %n: !n) -> !q {
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>, rounding = "before"} : (!x, !n) -> !x
  %s = "qfuse.tensor_scale"(%0) {storage = f8E4M3FN} : (!x) -> !s
  // expected-remark @+1 {{norm-quantize: refused at qfuse.quantize: the scale is that of the whole value, which is known when all of its rows are made; use a static scale, or one for each row or group}}
  %1 = "qfuse.quantize"(%0, %s) : (!x, !s) -> !q
  return %1 : !q
}

// -----

// A scale that something makes behind the norm.
// CHECK-LABEL: func.func @scale_made_late
// CHECK:         "qfuse.quantize"
#static = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #static>
func.func @scale_made_late(%x: !x, %n: !n, %s: !s) -> !q {
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>, rounding = "before"} : (!x, !n) -> !x
  %t = "qfuse.add"(%s, %s) : (!s, !s) -> !s
  // expected-remark @+1 {{norm-quantize: refused at qfuse.quantize: the scale is made after qfuse.rms_norm; pass the scale as a parameter}}
  %1 = "qfuse.quantize"(%0, %t) : (!x, !s) -> !q
  return %1 : !q
}

// -----

// A scale made between the add and the norm: the norm quantizes, the add stays.
// CHECK-LABEL: func.func @scale_made_between
// CHECK-NEXT:    "qfuse.add"
// CHECK-NEXT:    "qfuse.add"
// CHECK-NEXT:    "qfuse.rms_norm"
// CHECK-NEXT:    return
#static = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!s = tensor<1xf32>
!q = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #static>
func.func @scale_made_between(%x: !x, %r: !x, %m: tensor<300xbf16>, %s: !s) -> !q {
  %h = "qfuse.add"(%x, %r) : (!x, !x) -> !x
  %t = "qfuse.add"(%s, %s) : (!s, !s) -> !s
  // expected-remark @+1 {{norm-residual: refused at qfuse.rms_norm: the norm's scale is made after the residual add; pass the scale as a parameter}}
  %1 = "qfuse.rms_norm"(%h, %m, %t) {eps = 1.0e-6 : f64, offset = 0.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0, 1, 0>, resultSegmentSizes = array<i32: 0, 1, 0, 0>, rounding = "before"} : (!x, !n, !s) -> !q
  return %1 : !q
}
