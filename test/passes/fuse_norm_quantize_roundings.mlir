// RUN: qfuse-opt --qfuse-fuse-norm-quantize %s | filecheck %s --check-prefix=VALUE
// RUN: qfuse-opt --qfuse-fuse-norm-quantize=quantize-rounding=f32 %s | filecheck %s --check-prefix=F32
// RUN: not qfuse-opt --qfuse-fuse-norm-quantize=quantize-rounding=none %s 2>&1 | filecheck %s --check-prefix=ERROR

// What a norm quantizes: its value, as the unfused program, or what the value is rounded from.

// ERROR: qfuse-fuse-norm-quantize: quantize-rounding=none is not one of value, f32

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!xr = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!xs = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>

// VALUE-LABEL: func.func @main
// VALUE-NOT:     quantize_rounding
// VALUE:         return
// F32-LABEL:   func.func @main
// F32:           "qfuse.rms_norm"({{.*}} quantize_rounding = "f32", resultSegmentSizes = array<i32: 1, 1, 1, 0>
// F32-NEXT:      return
func.func @main(%x: !x, %n: tensor<512xbf16>) -> (!xq, !xr, !x) {
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  %1 = "qfuse.quantize"(%0) : (!x) -> !xq
  %2 = "qfuse.quantize"(%0) : (!x) -> !xr
  return %1, %2, %0 : !xq, !xr, !x
}
