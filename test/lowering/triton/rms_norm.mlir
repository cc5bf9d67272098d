// RUN: %python -m qfuse.tools.qfuse_translate --to=ttir %s | filecheck %s

// Residual, norm and quantization in one pass over each row.

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x1400xbf16>
!q = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>

// CHECK:       // kernel rms_norm_0 for cuda:sm_90, M >= 1: rms_norm_0, grid (ceil(M / 1) * 1, 1), 4 warps, 1 stages
// CHECK:       ^bb0(%[[X:.+]]: !tt.ptr<bf16>, %[[W:.+]]: !tt.ptr<bf16>, %[[R:.+]]: !tt.ptr<bf16>, %[[Q:.+]]: !tt.ptr<f8E4M3FN>, %[[S:.+]]: !tt.ptr<f32>, %[[H:.+]]: !tt.ptr<bf16>, %[[M:.+]]: i32):
// CHECK:         %[[SUM:.+]] = arith.addf %{{.+}}, %{{.+}} : tensor<1x2048xf32>
// CHECK-NEXT:    %[[ROUNDED:.+]] = arith.truncf %[[SUM]] : tensor<1x2048xf32> to tensor<1x2048xbf16>
// CHECK-NEXT:    %[[HF:.+]] = arith.extf %[[ROUNDED]]
// CHECK-NEXT:    %[[SQUARE:.+]] = arith.mulf %[[HF]], %[[HF]]
// CHECK-NEXT:    "tt.reduce"(%[[SQUARE]]) ({
// CHECK:           arith.addf
// CHECK:         }) {axis = 1 : i32} : (tensor<1x2048xf32>) -> tensor<1xf32>
// CHECK:         "tt.precise_divf"
// CHECK:         "tt.precise_sqrt"
// CHECK:         "tt.reshape"({{.*}} : (tensor<1x2048xf32>) -> tensor<1x16x128xf32>
// CHECK:         "tt.reduce"({{.*}}
// CHECK:         }) {axis = 2 : i32} : (tensor<1x16x128xf32>) -> tensor<1x16xf32>
// CHECK:         "tt.store"({{.*}} : (tensor<1x16x!tt.ptr<f32>>, tensor<1x16xf32>, tensor<1x16xi1>) -> ()
// CHECK:         "tt.store"({{.*}} : (tensor<1x2048x!tt.ptr<f8E4M3FN>>
// CHECK:         "tt.store"({{.*}} : (tensor<1x2048x!tt.ptr<bf16>>
func.func @main(%x: !x, %w: tensor<1400xbf16>, %r: !x) -> (!q, !x) {
  %0:2 = "qfuse.rms_norm"(%x, %w, %r) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 1, 0, 0>, resultSegmentSizes = array<i32: 0, 1, 0, 1>} : (!x, tensor<1400xbf16>, !x) -> (!q, !x)
  return %0#0, %0#1 : !q, !x
}
