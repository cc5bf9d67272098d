// RUN: %python -m qfuse.tools.qfuse_translate --to=ttir --target=cuda:sm_90 --m 1 %s | filecheck %s

// Few rows: weights ride the long side of the product, K is cut into slices of 1024, and a second
// launch adds the slices in order and runs the epilogue.

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<768x2048xf8E4M3FN>, #weight>
!y = tensor<?x768xbf16>

// CHECK:       // kernel matmul_0 for cuda:sm_90, M 1..16: matmul_0_split16x128, grid (ceil(M / 16) * 6, 2), 4 warps, 6 stages
// CHECK:       ^bb0(%[[X:.+]]: !tt.ptr<f8E4M3FN>, %[[XS:.+]]: !tt.ptr<f32>, %[[W:.+]]: !tt.ptr<f8E4M3FN>, %[[WS:.+]]: !tt.ptr<f32>, %[[SCRATCH:.+]]: !tt.ptr<f32>, %[[M:.+]]: i32):
// CHECK:         %[[ZERO:.+]] = arith.constant dense<0.000000e+00> : tensor<128x16xf32>
// CHECK:         "tt.get_program_id"() {axis = 1 : i32}
// CHECK:         %[[SUM:.+]]:3 = scf.for
// CHECK:           %[[XB:.+]] = "tt.load"({{.*}} -> tensor<16x128xf8E4M3FN>
// CHECK:           %[[WB:.+]] = "tt.load"(%{{[^,]+}}) {{.*}} -> tensor<128x128xf8E4M3FN>
// CHECK:           %[[XT:.+]] = "tt.trans"(%[[XB]])
// CHECK:           "tt.dot"(%[[WB]], %[[XT]], %[[ZERO]])
// CHECK:         "tt.addptr"(%[[SCRATCH]]
// CHECK:         "tt.store"(%{{.+}}, %[[SUM]]#0, %{{.+}}) {{.*}} : (tensor<128x16x!tt.ptr<f32>>

// CHECK:       // kernel matmul_0 for cuda:sm_90, M 1..16: matmul_0_split16x128_sum, grid (ceil(M / 1) * 6, 1), 1 warps, 1 stages
// CHECK:       ^bb0(%[[Y:.+]]: !tt.ptr<bf16>, %[[PARTIAL:.+]]: !tt.ptr<f32>, %{{.+}}: i32):
// CHECK:         %[[P0:.+]] = "tt.load"({{.*}} -> tensor<1x128xf32>
// CHECK:         %[[P1:.+]] = "tt.load"({{.*}} -> tensor<1x128xf32>
// CHECK-NEXT:    %[[TOTAL:.+]] = arith.addf %[[P0]], %[[P1]] : tensor<1x128xf32>
// CHECK:         %[[V:.+]] = arith.maximumf %[[TOTAL]], %{{.+}} : tensor<1x128xf32>
// CHECK:         arith.truncf %[[V]] : tensor<1x128xf32> to tensor<1x128xbf16>
// CHECK:         "tt.store"
// CHECK-NOT:   // kernel
func.func @main(%x: !x, %w: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %zero = arith.constant 0.0 : f32
    %v = arith.maximumf %acc, %zero : f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 768>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  return %0 : !y
}
