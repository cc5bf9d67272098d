// RUN: qfuse-translate --to=ttir --target=cuda:sm_90 --m 64 %s | filecheck %s

// A program finds the expert of its block of rows in indptr; beyond the last there is nothing to do.

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<128x1536x2048xf8E4M3FN>, #weight>
!h = !qfuse.qtensor<tensor<?x8x768xf8E4M3FN>, #act>

// CHECK:       // kernel group_matmul_0 for cuda:sm_90, M {{.+}}: group_matmul_0_[[KIND:swap16x128_from[0-9]+]], grid ((M + min(M, 128) * 15) / 16 * 6, 1), 4 warps
// CHECK:       ^bb0(%[[X:.+]]: !tt.ptr<f8E4M3FN>, %[[XS:.+]]: !tt.ptr<f32>, %[[W:.+]]: !tt.ptr<f8E4M3FN>, %[[WS:.+]]: !tt.ptr<f32>, %[[INDPTR:.+]]: !tt.ptr<i32>, %[[TOKENS:.+]]: !tt.ptr<i32>, %[[H:.+]]: !tt.ptr<f8E4M3FN>, %[[HS:.+]]: !tt.ptr<f32>, %[[M:.+]]: i32):
// CHECK-DAG:     %[[PID:.+]] = "tt.get_program_id"() {axis = 0 : i32}
// CHECK-DAG:     %[[SIX:.+]] = arith.constant 6 : i32
// CHECK-DAG:     %[[BLOCK:.+]] = arith.divsi %[[PID]], %[[SIX]] : i32

// The last block of each expert, by a prefix sum over the blocks that its rows take.
// CHECK:         "tt.splat"(%[[INDPTR]]) : (!tt.ptr<i32>) -> tensor<128x!tt.ptr<i32>>
// CHECK:         %[[ENDS:.+]] = "tt.scan"
// CHECK:           arith.addi
// CHECK-NEXT:      "tt.scan.return"
// CHECK:         arith.cmpi slt, %[[ENDS]]
// CHECK:         %[[EXPERT:.+]] = "tt.reduce"
// CHECK:         %[[FIRST:.+]] = "tt.reduce"
// CHECK:         %[[THERE:.+]] = arith.cmpi slt, %[[EXPERT]], %{{.+}} : i32
// CHECK-NEXT:    scf.if %[[THERE]] {

// Rows of x are those of the tokens, none of which leads outside; the weight is the expert's.
// CHECK:           "tt.addptr"(%[[TOKENS]]
// CHECK:           arith.minsi %{{.+}} : tensor<16xi32>
// CHECK-NEXT:      %[[CLAMPED:.+]] = arith.maxsi
// CHECK-NEXT:      %[[WIDE:.+]] = arith.extsi %[[CLAMPED]] : tensor<16xi32> to tensor<16xi64>
// CHECK:           %[[ROWS:.+]] = "tt.expand_dims"({{.*}} -> tensor<16x1x!tt.ptr<f8E4M3FN>>
// CHECK:           arith.muli %[[EXPERT]]
// CHECK:           scf.for
// CHECK:             "tt.broadcast"(%[[ROWS]])
// CHECK:             "tt.dot"({{.*}} : (tensor<128x128xf8E4M3FN>, tensor<128x16xf8E4M3FN>, tensor<128x16xf32>)
// CHECK:             "tt.dot"
// CHECK:           scf.yield
// CHECK:           arith.divf
// CHECK:           "tt.store"
// CHECK-NOT:     else
func.func @main(%x: !x, %w: !w, %indptr: tensor<129xi32>, %tokens: tensor<?x8xi32>) -> !h {
  %0 = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%gate: f32, %up: f32):
    %one = arith.constant 1.0 : f32
    %n = arith.negf %gate : f32
    %e = math.exp %n : f32
    %d = arith.addf %one, %e : f32
    %s = arith.divf %gate, %d : f32
    %v = arith.mulf %s, %up : f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 768, 768>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, tensor<129xi32>, tensor<?x8xi32>) -> !h
  return %0 : !h
}
