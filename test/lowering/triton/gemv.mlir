// RUN: qfuse-translate --to=ttir --m 1 --target=cuda:sm_80 %s | filecheck %s

// One row of plain x: no matrix instructions, which would want 16 rows.  A program has some rows
// of w, its threads some elements of K; codes go from memory to registers.

#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x1000xf16>
!w = !qfuse.qtensor<tensor<100x1000xf8E5M2>, #weight>
!y = tensor<?x100xf16>

// CHECK:       // kernel matmul_0 for cuda:sm_80, M 1..1: matmul_0_gemv1x[[N:[0-9]+]], grid (
// CHECK:       ^bb0(%[[X:.+]]: !tt.ptr<f16>, %[[W:.+]]: !tt.ptr<f8E5M2>, %[[WS:.+]]: !tt.ptr<f32>, %[[B:.+]]: !tt.ptr<f16>, %[[Y:.+]]: !tt.ptr<f16>, %[[M:.+]]: i32):
// CHECK-NOT:     "tt.dot"

// 1000 is no multiple of a step, nor 100 of the rows of a program: codes are masked on both sides.
// CHECK:         "tt.load"({{.*}}xi1>, tensor<[[N]]x[[G:[0-9]+]]x128xf8E5M2>) -> tensor<[[N]]x[[G]]x128xf8E5M2>

// x times the scale of its group, then one multiply-add for each code, in f32.
// CHECK:         %[[XS:.+]] = arith.mulf %{{.+}}, %{{.+}} : tensor<[[N]]x[[G]]x128xf32>
// CHECK:         "tt.elementwise_inline_asm"(%{{.+}}, %[[XS]], %{{.+}}) {asm_string = "fma.rn.f32 $0, $1, $2, $3;"

// The sums of the threads, in two steps; then the epilogue, on one row.
// CHECK:         "tt.reduce"
// CHECK:         }) {axis = 2 : i32} : (tensor<[[N]]x[[G]]x128xf32>) -> tensor<[[N]]x[[G]]xf32>
// CHECK:         %[[SUM:.+]] = "tt.reduce"
// CHECK:         }) {axis = 1 : i32} : (tensor<[[N]]x[[G]]xf32>) -> tensor<[[N]]xf32>
// CHECK:         %[[ROW:.+]] = "tt.expand_dims"(%[[SUM]]) {axis = 0 : i32} : (tensor<[[N]]xf32>) -> tensor<1x[[N]]xf32>
// CHECK:         "tt.addptr"(%[[B]]
// CHECK:         %[[V:.+]] = arith.addf %[[ROW]], %{{.+}} : tensor<1x[[N]]xf32>
// CHECK:         %[[R:.+]] = arith.truncf %[[V]] : tensor<1x[[N]]xf32> to tensor<1x[[N]]xf16>
// CHECK:         "tt.store"(%{{.+}}, %[[R]], %{{.+}})
// CHECK-NOT:     "tt.store"
func.func @main(%x: !x, %w: !w, %bias: tensor<100xf16>) -> !y {
  %0 = "qfuse.matmul"(%x, %w, %bias) ({
  ^bb0(%acc: f32, %b: f32):
    %v = arith.addf %acc, %b : f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 100>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, tensor<100xf16>) -> !y
  return %0 : !y
}
