// RUN: %python -m qfuse.tools.qfuse_translate --to=ttir %s | filecheck %s
// RUN: %python -m qfuse.tools.qfuse_translate --to=ttir --target=cuda:sm_80 %s | filecheck %s --check-prefix=SM80

// Quantization, GLU and element-wise operations, a tile of each row per program.

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x4096xbf16>
!h = tensor<?x2048xbf16>
!q = !qfuse.qtensor<tensor<?x4096xf8E4M3FN>, #act>

// CHECK-DAG:   kernel quantize_0 for cuda:sm_90, M >= 1: quantize_0, grid (ceil(M / 1) * 4, 1), 2 warps
// CHECK-DAG:     "tt.fp_to_fp"({{.*}} {rounding = 1 : i32} : (tensor<1x8x128xf32>) -> tensor<1x8x128xf8E4M3FN>
// CHECK-DAG:   kernel dequantize_0
// CHECK-DAG:   kernel glu_0
// CHECK-DAG:   kernel add_0
// CHECK-DAG:     "tt.load"({{.*}} (tensor<1x1024x!tt.ptr<bf16>>) -> tensor<1x1024xbf16>
// CHECK-DAG:   kernel gelu_tanh_0
// CHECK-DAG:     symbol = "__nv_tanhf"

// sm_80 has no FP8: the codes are made of the bits of f32.
// SM80:        kernel quantize_0 for cuda:sm_80
// SM80-NOT:      tt.fp_to_fp
// SM80:          arith.shrui
// SM80:          "tt.bitcast"({{.*}} -> tensor<1x8x128xf8E4M3FN>
func.func @main(%x: !x, %b: tensor<4096xbf16>) -> (!x, !h, !x) {
  %q = "qfuse.quantize"(%x) : (!x) -> !q
  %d = "qfuse.dequantize"(%q) : (!q) -> !x
  %g = "qfuse.glu"(%d) {act = "silu", operandSegmentSizes = array<i32: 1, 0, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!x) -> !h
  %a = "qfuse.add"(%x, %b) : (!x, tensor<4096xbf16>) -> !x
  %t = "qfuse.gelu_tanh"(%x) : (!x) -> !x
  return %a, %g, %t : !x, !h, !x
}
