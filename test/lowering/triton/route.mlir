// RUN: qfuse-translate --to=ttir --target=cuda:sm_90 --m 1000 %s | filecheck %s

// One program for each expert, and one for the choices that are no expert's: nothing depends on
// which of them is first, so there are no atomics.

// CHECK:       // kernel route_0 for cuda:sm_90, M >= 33: route_0_by4096, grid (ceil(M / 2147483647) * 129, 1), 8 warps
// CHECK:       ^bb0(%[[IDS:.+]]: !tt.ptr<i64>, %[[SLOTS:.+]]: !tt.ptr<i32>, %[[TOKENS:.+]]: !tt.ptr<i32>, %[[INDPTR:.+]]: !tt.ptr<i32>, %[[M:.+]]: i32):
// CHECK-NOT:     atomic
// CHECK:         %[[MINE:.+]] = "tt.get_program_id"

// Ids outside of 0..E-1, all 64 bits considered, are those of the last program.
// CHECK:         %[[COUNTS:.+]] = scf.for
// CHECK:           %[[ID:.+]] = "tt.load"({{.*}} -> tensor<4096xi64>
// CHECK-NEXT:      %[[OWN:.+]] = arith.minui %[[ID]], %{{.+}} : tensor<4096xi64>
// CHECK-NEXT:      arith.trunci %[[OWN]]
// CHECK:           arith.cmpi slt
// CHECK:         %[[START:.+]] = "tt.reduce"(%[[COUNTS]])
// CHECK:         %[[AT:.+]] = "tt.addptr"(%[[INDPTR]], %[[MINE]])
// CHECK-NEXT:    "tt.store"(%[[AT]], %[[START]])

// CHECK:         scf.for {{.*}} iter_args(%{{.+}} = %[[START]])
// CHECK:           arith.cmpi eq
// CHECK:           "tt.scan"
// CHECK:           "tt.store"({{.*}} : (tensor<4096x!tt.ptr<i32>>, tensor<4096xi32>, tensor<4096xi1>)
// CHECK:           "tt.store"({{.*}} : (tensor<4096x!tt.ptr<i32>>, tensor<4096xi32>, tensor<4096xi1>)

// CHECK:       // kernel combine_0 for cuda:sm_90, M >= 1: combine_0, grid (ceil(M / 1) * 2, 1), 2 warps
// The choices in their order, each product rounded before it is added; those of no expert left out.
// CHECK:         arith.cmpi ult, %{{.+}}, %{{.+}} : tensor<1x1xi32>
// CHECK:         %[[Y:.+]] = "tt.load"({{.*}} -> tensor<1x1024xbf16>
// CHECK:         arith.mulf
// CHECK-NEXT:    %[[SUM:.+]] = arith.addf
// CHECK:         arith.select %{{.+}}, %[[SUM]]
// CHECK:         arith.mulf
// CHECK-NEXT:    arith.addf
// CHECK:         arith.truncf
// CHECK:         "tt.store"
func.func @main(%ids: tensor<?x8xi64>, %y: tensor<?x8x2048xbf16>, %w: tensor<?x8xf32>) -> (tensor<?x2048xbf16>, tensor<?x8xi32>, tensor<129xi32>) {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 128 : i64} : (tensor<?x8xi64>) -> (tensor<?x8xi32>, tensor<?x8xi32>, tensor<129xi32>)
  %0 = "qfuse.combine"(%y, %slots, %w) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (tensor<?x8x2048xbf16>, tensor<?x8xi32>, tensor<?x8xf32>) -> tensor<?x2048xbf16>
  return %0, %tokens, %indptr : tensor<?x2048xbf16>, tensor<?x8xi32>, tensor<129xi32>
}
