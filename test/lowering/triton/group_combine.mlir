// RUN: qfuse-translate --to=ttir --target=cuda:sm_90 --m 1 %s | filecheck %s --check-prefix ONE
// RUN: qfuse-translate --to=ttir --target=cuda:sm_90 --m 200 %s | filecheck %s --check-prefix MANY

// Few tokens are added up by the last program of a tile of columns, many by a second launch.

// ONE:      // kernel group_matmul_combine_0 for cuda:sm_90, M 1..1: group_matmul_combine_0_swap16x64_from1, grid ((8 M + min(8 M, 128) * 15) / 16 * 32, 1), 4 warps
// ONE:      ^bb0(%{{.+}}: !tt.ptr<f8E4M3FN>, %{{.+}}: !tt.ptr<f32>, %{{.+}}: !tt.ptr<f8E4M3FN>, %{{.+}}: !tt.ptr<f32>, %{{.+}}: !tt.ptr<i32>, %[[SLOTS:.+]]: !tt.ptr<i32>, %[[WEIGHTS:.+]]: !tt.ptr<f32>, %[[RESIDUAL:.+]]: !tt.ptr<bf16>, %[[OUT:.+]]: !tt.ptr<bf16>, %[[ROWS:.+]]: !tt.ptr<bf16>, %[[COUNTERS:.+]]: !tt.ptr<i32>, %[[M:.+]]: i32):

// Rows go to scratch as what they were rounded to.
// ONE:        scf.if
// ONE:          "tt.dot"
// ONE:          "tt.addptr"(%[[ROWS]]
// ONE:          "tt.store"({{.*}}tensor<64x16xbf16>
// ONE:        }

// Each program counts, also one without rows.
// ONE:        %[[PLACE:.+]] = "tt.addptr"(%[[COUNTERS]]
// ONE-NEXT:   gpu.barrier
// ONE-NEXT:   %[[BEFORE:.+]] = "tt.atomic_rmw"(%[[PLACE]]
// ONE:        %[[LAST:.+]] = arith.cmpi eq, %[[BEFORE]]
// ONE-NEXT:   scf.if %[[LAST]] {
// ONE:          "tt.atomic_rmw"(%[[PLACE]]
// ONE:          "tt.addptr"(%[[SLOTS]]
// ONE:          "tt.load"{{.*}}tensor<1x64xbf16>
// ONE:          "tt.addptr"(%[[WEIGHTS]]
// ONE:          arith.mulf
// ONE:          arith.addf
// ONE:          "tt.addptr"(%[[RESIDUAL]]
// ONE:          "tt.addptr"(%[[OUT]]
// ONE:          "tt.store"
// ONE:        }

// The product itself knows nothing of what is added up.
// MANY:     // kernel group_matmul_combine_0 for cuda:sm_90, M {{.+}}: group_matmul_combine_0_[[KIND:.+]], grid ((8 M + min(8 M, 128) * {{[0-9]+}}) / {{[0-9]+}} * {{[0-9]+}}, 1)
// MANY:     ^bb0(%{{.+}}: !tt.ptr<f8E4M3FN>, %{{.+}}: !tt.ptr<f32>, %{{.+}}: !tt.ptr<f8E4M3FN>, %{{.+}}: !tt.ptr<f32>, %{{.+}}: !tt.ptr<i32>, %[[ROWS:.+]]: !tt.ptr<bf16>, %{{.+}}: i32):
// MANY-NOT:   tt.atomic_rmw
// MANY:     // kernel group_matmul_combine_0 for cuda:sm_90, M {{.+}}: group_matmul_combine_0_{{.+}}_sum, grid (ceil(M / 1) * 2, 1)
// MANY:     ^bb0(%{{.+}}: !tt.ptr<i32>, %{{.+}}: !tt.ptr<f32>, %{{.+}}: !tt.ptr<bf16>, %{{.+}}: !tt.ptr<bf16>, %[[ROWS:.+]]: !tt.ptr<bf16>, %[[M:.+]]: i32):
// MANY-NOT:   tt.dot
// MANY:       "tt.store"

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!h = !qfuse.qtensor<tensor<?x8x768xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<128x2048x768xf8E4M3FN>, #weight>
!o = tensor<?x2048xbf16>

func.func @main(%h: !h, %w: !w, %indptr: tensor<129xi32>, %slots: tensor<?x8xi32>, %weights: tensor<?x8xf32>, %residual: !o) -> !o {
  %0 = "qfuse.group_matmul_combine"(%h, %w, %indptr, %slots, %weights, %residual) ({
  ^bb0(%acc: f32):
    %cut = arith.truncf %acc : f32 to bf16
    %row = arith.extf %cut : bf16 to f32
    "qfuse.yield"(%row) : (f32) -> ()
  }) {parts = array<i64: 2048>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>} : (!h, !w, tensor<129xi32>, tensor<?x8xi32>, tensor<?x8xf32>, !o) -> !o
  return %0 : !o
}
