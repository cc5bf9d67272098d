// RUN: qfuse-translate --to=ttir --m 1 --target=cuda:sm_90 %s | filecheck %s

// One row by codes that share bytes: each byte is two multiply-adds, and x is read as pairs where
// the codes are those of neighbouring columns.

#int4 = #qfuse.scheme<array<i64: 1, 64>, f16, "int4", "none", "row_major">
#q6_k = #qfuse.scheme<array<i64: 1, 256>, i8, "q6_k", "none", "row_major">
!x = tensor<?x1024xbf16>
!w4 = !qfuse.qtensor<tensor<4096x1024xi4>, #int4>
!w6 = !qfuse.qtensor<tensor<4096x1024xi6>, #q6_k>
!y = tensor<?x4096xbf16>

// CHECK:       kernel matmul_0 for cuda:sm_90, M 1..1: matmul_0_gemv1x[[N:[0-9]+]]
// CHECK-NOT:     "tt.dot"
// CHECK:         scf.for
// CHECK:           "tt.load"({{.*}} -> tensor<[[N]]x8x32xi8>
// CHECK:           "tt.bitcast"(%{{.+}}) : (!tt.ptr<bf16>) -> !tt.ptr<i32>
// CHECK:           %[[PAIRS:.+]] = "tt.load"({{.*}} -> tensor<[[N]]x8x32xi32>
// CHECK-DAG:       arith.trunci %[[PAIRS]]
// CHECK-DAG:       arith.shrui %[[PAIRS]]
// CHECK:           %[[SCALE:.+]] = "tt.load"({{.*}} -> tensor<[[N]]x8x32xf16>
// CHECK:           %[[SF:.+]] = arith.extf %[[SCALE]]
// CHECK:           %[[EVEN:.+]] = arith.mulf %{{.+}}, %{{.+}} : tensor<[[N]]x8x32xf32>
// CHECK-NEXT:      %[[BOTH:.+]] = "tt.elementwise_inline_asm"(%{{.+}}, %{{.+}}, %[[EVEN]]) {asm_string = "fma
// CHECK-NEXT:      "tt.elementwise_inline_asm"(%[[BOTH]], %[[SF]], %{{.+}}) {asm_string = "fma
func.func @int4(%x: !x, %w: !w4) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w4) -> !y
  return %0 : !y
}

// Q6_K: 16 bytes with lower bits twice, 16 with upper bits, and x from four places.
// CHECK:       kernel matmul_1 for cuda:sm_90, M 1..1: matmul_1_gemv1x
// CHECK:         scf.for
// CHECK-COUNT-3:   "tt.load"({{.*}} -> tensor<8x8x16xi8>
// CHECK-COUNT-4:   "tt.load"({{.*}} -> tensor<8x8x16xbf16>
// CHECK:           "tt.load"({{.*}} -> tensor<8x8x16xf16>
// CHECK-COUNT-4:   "tt.elementwise_inline_asm"({{.*}} {asm_string = "fma
func.func @q6_k(%x: !x, %w: !w6) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w6) -> !y
  return %0 : !y
}
