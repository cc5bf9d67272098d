// RUN: env QFUSE_TILE_TABLE=%S/tiles.json %python -m qfuse.tools.qfuse_translate --to=ttir --target=cuda:sm_90 --m 1024 %s | filecheck %s

// Gate and up are the two products of a step; the epilogue multiplies them and quantizes.

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<2048x512xf8E4M3FN>, #weight>
!y = !qfuse.qtensor<tensor<?x1024xf8E4M3FN>, #act>

// CHECK:       matmul_0_ws128x128, grid (min(ceil(M / 128) * 8, 132), 1), 4 warps, 4 stages
// CHECK:         %[[SUMS:.+]]:5 = scf.for
// CHECK:         %[[V:.+]] = arith.mulf %[[SUMS]]#0, %[[SUMS]]#1 : tensor<128x128xf32>
// CHECK:         %[[ABS:.+]] = math.absf %[[V]] : tensor<128x128xf32>
// CHECK:         %[[MAX:.+]] = "tt.reduce"(%[[ABS]]) ({
// CHECK:           arith.maximumf
// CHECK:           "tt.reduce.return"
// CHECK:         }) {axis = 1 : i32} : (tensor<128x128xf32>) -> tensor<128xf32>
// CHECK:         %[[AMAX:.+]] = arith.maximumf %[[MAX]], %{{.+}} : tensor<128xf32>
// CHECK:         %[[SCALE:.+]] = "tt.precise_divf"(%[[AMAX]], %{{.+}})
// CHECK:         %[[INVERSE:.+]] = "tt.precise_divf"(%{{.+}}, %[[AMAX]])
// CHECK:         %[[CODES:.+]] = "tt.fp_to_fp"(%{{.+}}) {rounding = 1 : i32} : (tensor<128x128xf32>) -> tensor<128x128xf8E4M3FN>
// CHECK:         "tt.store"({{.*}} : (tensor<128x1x!tt.ptr<f32>>, tensor<128x1xf32>, tensor<128x1xi1>) -> ()
// CHECK:         "tt.descriptor_store"(%{{.+}}, %[[CODES]]
func.func @main(%x: !x, %w: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%gate: f32, %up: f32):
    %v = arith.mulf %gate, %up : f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 1024, 1024>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  return %0 : !y
}
