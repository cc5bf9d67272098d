// RUN: env QFUSE_TILE_TABLE=%S/tiles.json %python -m qfuse.tools.qfuse_translate --to=ttir --target=cuda:sm_90 --m 1 %s | filecheck %s

// Few rows: weights ride the long side of the product, K is cut into slices, and the last program
// of a tile to finish adds the slices in order and runs the epilogue.

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<768x2048xf8E4M3FN>, #weight>
!y = tensor<?x768xbf16>

// CHECK:       // kernel matmul_0 for cuda:sm_90, M 1..16: matmul_0_split16x128, grid (ceil(M / 16) * 6, 2), 4 warps, 6 stages
// CHECK:       ^bb0(%[[X:.+]]: !tt.ptr<f8E4M3FN>, %[[XS:.+]]: !tt.ptr<f32>, %[[W:.+]]: !tt.ptr<f8E4M3FN>, %[[WS:.+]]: !tt.ptr<f32>, %[[Y:.+]]: !tt.ptr<bf16>, %[[SCRATCH:.+]]: !tt.ptr<f32>, %[[COUNTERS:.+]]: !tt.ptr<i32>, %[[M:.+]]: i32):
// CHECK:         %[[ZERO:.+]] = arith.constant dense<0.000000e+00> : tensor<128x16xf32>
// CHECK:         "tt.get_program_id"() {axis = 1 : i32}
// CHECK:         %[[SUM:.+]]:3 = scf.for
// CHECK:           %[[XB:.+]] = "tt.load"({{.*}} -> tensor<16x128xf8E4M3FN>
// CHECK:           %[[WB:.+]] = "tt.load"(%{{[^,]+}}) {{.*}} -> tensor<128x128xf8E4M3FN>
// CHECK:           %[[XT:.+]] = "tt.trans"(%[[XB]])
// CHECK:           "tt.dot"(%[[WB]], %[[XT]], %[[ZERO]])
// CHECK:         "tt.addptr"(%[[SCRATCH]]
// CHECK:         "tt.store"(%{{.+}}, %[[SUM]]#0, %{{.+}}) {{.*}} : (tensor<128x16x!tt.ptr<f32>>

// CHECK:         gpu.barrier
// CHECK:         %[[COUNTER:.+]] = "tt.addptr"(%[[COUNTERS]]
// CHECK-NEXT:    %[[BEFORE:.+]] = "tt.atomic_rmw"(%[[COUNTER]], %[[ONE:.+]]) {atomic_rmw_op = 4 : i32, scope = 1 : i32, sem = 4 : i32}
// CHECK-NEXT:    %[[LAST:.+]] = arith.cmpi eq, %[[BEFORE]], %[[ONE]] : i32
// CHECK-NEXT:    scf.if %[[LAST]] {
// CHECK-NEXT:      "tt.atomic_rmw"(%[[COUNTER]], %{{.+}}) {atomic_rmw_op = 10 : i32, scope = 1 : i32, sem = 1 : i32}
// CHECK:           %[[P0:.+]] = "tt.load"({{.*}} -> tensor<128x16xf32>
// CHECK:           %[[P1:.+]] = "tt.load"({{.*}} -> tensor<128x16xf32>
// CHECK:           %[[TOTAL:.+]] = arith.addf %[[P0]], %[[P1]] : tensor<128x16xf32>
// CHECK:           %[[V:.+]] = arith.maximumf %[[TOTAL]], %{{.+}} : tensor<128x16xf32>
// CHECK:           arith.truncf %[[V]] : tensor<128x16xf32> to tensor<128x16xbf16>
// CHECK:           "tt.store"
// CHECK-NOT:   "tt.func"
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
