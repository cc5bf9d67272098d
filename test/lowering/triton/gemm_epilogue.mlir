// RUN: qfuse-translate --to=ttir --m 4096 %s | filecheck %s

// An epilogue region on whole tiles: operands of each kind are loaded in their own shape and
// broadcast where they meet; two results of different types leave one launch.

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<200x300xf8E4M3FN>, #weight>
!y = tensor<?x200xbf16>
!z = tensor<?x200xf32>

// CHECK:       // kernel matmul_0 for cuda:sm_90
// CHECK:       ^bb0(%{{.+}}: !tt.ptr<f8E4M3FN>, %{{.+}}: !tt.ptr<f32>, %{{.+}}: !tt.ptr<f8E4M3FN>, %{{.+}}: !tt.ptr<f32>, %[[BIAS:.+]]: !tt.ptr<bf16>, %[[COLUMN:.+]]: !tt.ptr<f32>, %[[RESIDUAL:.+]]: !tt.ptr<bf16>, %[[SCALAR:.+]]: !tt.ptr<f32>, %[[Y:.+]]: !tt.ptr<bf16>, %[[Z:.+]]: !tt.ptr<f32>, %[[M:.+]]: i32):
// CHECK-DAG:     %[[MINUS:.+]] = arith.constant dense<-1.000000e+00> : tensor<[[R:[0-9]+]]x[[C:[0-9]+]]xf32>

// A step of K: 300 is no multiple of it, so its end is masked; a product starts at zero.
// CHECK:         %[[TOTAL:.+]]:3 = scf.for
// CHECK:           arith.subi %c300_i32
// CHECK:           "tt.dot"({{.*}}maxNumImpreciseAcc = 1073741824 : i32{{.*}} -> tensor<[[R]]x[[C]]xf32>
// CHECK:           "tt.elementwise_inline_asm"({{.*}}fma.rn.f32 $0, $1, $2, $3;{{.*}}pure = true

// [N]: one row, masked at the end of it.
// CHECK:         "tt.addptr"(%[[BIAS]]
// CHECK:         arith.cmpi slt, %{{.+}}, %{{.+}} : tensor<1x[[C]]xi32>
// CHECK:         "tt.load"({{.*}} -> tensor<1x[[C]]xbf16>
// [M,1]: one column.
// CHECK:         "tt.addptr"(%[[COLUMN]]
// CHECK:         arith.cmpi slt, %{{.+}}, %{{.+}} : tensor<[[R]]x1xi32>
// CHECK:         "tt.load"({{.*}} -> tensor<[[R]]x1xf32>
// [M,N]: the tile, masked on both sides.
// CHECK:         "tt.addptr"(%[[RESIDUAL]]
// CHECK:         %[[MASK:.+]] = arith.andi %{{.+}}, %{{.+}} : tensor<[[R]]x[[C]]xi1>
// CHECK:         "tt.load"(%{{.+}}, %[[MASK]], %{{.+}}) {{.*}} -> tensor<[[R]]x[[C]]xbf16>
// []: one element.
// CHECK:         %[[E:.+]] = "tt.load"(%[[SCALAR]]) {{.*}} -> f32

// CHECK:         %[[A:.+]] = arith.addf %[[TOTAL]]#0, %{{.+}} : tensor<[[R]]x[[C]]xf32>
// CHECK:         %[[B:.+]] = arith.mulf %[[A]], %{{.+}}

// Triton has no arith.negf.
// CHECK-NOT:     arith.negf
// CHECK:         %[[N:.+]] = arith.mulf %[[B]], %[[MINUS]]
// CHECK-NEXT:    %[[EXP:.+]] = math.exp %[[N]]
// CHECK-NEXT:    %[[D:.+]] = arith.addf %[[EXP]], %{{.+}}
// CHECK-NEXT:    %[[ES:.+]] = "tt.splat"(%[[E]]) : (f32) -> tensor<[[R]]x[[C]]xf32>
// CHECK-NEXT:    %[[Q:.+]] = arith.divf %[[D]], %[[ES]]
// CHECK-NEXT:    %[[BF:.+]] = arith.truncf %[[Q]] : tensor<[[R]]x[[C]]xf32> to tensor<[[R]]x[[C]]xbf16>
// CHECK:         "tt.addptr"(%[[Y]]
// CHECK:         "tt.store"(%{{.+}}, %[[BF]], %[[MASK]])
// CHECK:         "tt.addptr"(%[[Z]]
// CHECK:         "tt.store"(%{{.+}}, %[[TOTAL]]#0, %[[MASK]])
// CHECK-NOT:     "tt.store"
func.func @main(%x: !x, %w: !w, %bias: tensor<200xbf16>, %column: tensor<?x1xf32>, %residual: !y, %scalar: tensor<1xf32>) -> (!y, !z) {
  %0:2 = "qfuse.matmul"(%x, %w, %bias, %column, %residual, %scalar) ({
  ^bb0(%acc: f32, %b: f32, %c: f32, %r: f32, %s: f32):
    %0 = arith.addf %acc, %b : f32
    %1 = arith.mulf %0, %c : f32
    %2 = arith.negf %1 : f32
    %3 = math.exp %2 : f32
    %4 = arith.addf %3, %r : f32
    %5 = arith.divf %4, %s : f32
    "qfuse.yield"(%5, %acc) : (f32, f32) -> ()
  }) {parts = array<i64: 200>, maps = ["[N]", "[M,1]", "[M,N]", "[]"], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!x, !w, tensor<200xbf16>, tensor<?x1xf32>, !y, tensor<1xf32>) -> (!y, !z)
  return %0#0, %0#1 : !y, !z
}
