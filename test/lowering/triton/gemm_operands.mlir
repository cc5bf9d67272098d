// RUN: qfuse-translate --to=ttir --m 4096 --target=cuda:sm_89 %s | filecheck %s
// RUN: qfuse-translate --to=ttir --m 4096 --target=cuda:sm_80 %s | filecheck %s --check-prefix=SM80

// What a product may multiply beside FP8 by FP8 with scales of blocks.

#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
#columns = #qfuse.scheme<array<i64: 1, 32>, f16, "none", "none", "col_major">
#rows = #qfuse.scheme<array<i64: 1, 32>, f16, "none", "none", "row_major">
!plain = tensor<?x512xbf16>
!y = tensor<?x256xbf16>

// Nothing is scaled, so sums stay in the accumulators.
// CHECK:       kernel matmul_0
// CHECK:         scf.for {{.*}} iter_args(%[[SUM:.+]] = %{{.+}}) -> (tensor<[[R:[0-9]+]]x[[C:[0-9]+]]xf32>)
// CHECK:           %[[X:.+]] = "tt.load"({{.*}} -> tensor<[[R]]x[[D:[0-9]+]]xbf16>
// CHECK:           %[[W:.+]] = "tt.load"({{.*}} -> tensor<[[C]]x[[D]]xbf16>
// CHECK:           %[[WT:.+]] = "tt.trans"(%[[W]])
// CHECK-NEXT:      %[[NEXT:.+]] = "tt.dot"(%[[X]], %[[WT]], %[[SUM]])
// CHECK-NEXT:      scf.yield %[[NEXT]]
// CHECK-NOT:     tt.elementwise_inline_asm
func.func @plain(%x: !plain, %w: tensor<256x512xbf16>) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!plain, tensor<256x512xbf16>) -> !y
  return %0 : !y
}

// Plain x and FP8 codes: decoded exactly, multiplied as bf16, scaled once per step.
// CHECK:       kernel matmul_1
// CHECK:         %{{.+}}:2 = scf.for {{.*}} iter_args(%[[SUM:.+]] = %{{.+}}, %[[S:.+]] = %{{.+}}) -> (tensor<[[R1:[0-9]+]]x[[C1:[0-9]+]]xf32>, f32)
// CHECK:           %[[CODES:.+]] = "tt.load"({{.*}} -> tensor<[[C1]]x[[D1:[0-9]+]]xf8E4M3FN>
// CHECK:           %[[W:.+]] = "tt.fp_to_fp"(%[[CODES]]) : (tensor<[[C1]]x[[D1]]xf8E4M3FN>) -> tensor<[[C1]]x[[D1]]xbf16>
// CHECK:           %[[WT:.+]] = "tt.trans"(%[[W]])
// CHECK-NEXT:      %[[P:.+]] = "tt.dot"(%{{.+}}, %[[WT]], %{{.+}})
// CHECK-NEXT:      %[[SS:.+]] = "tt.splat"(%[[S]])
// CHECK-NEXT:      "tt.elementwise_inline_asm"(%[[P]], %[[SS]], %[[SUM]])

// sm_80 has no FP8, and Triton converts none there: codes are decoded on their bits.
// SM80:        kernel matmul_1
// SM80:          scf.for
// SM80:            %[[CODES:.+]] = "tt.load"({{.*}}xf8E4M3FN>
// SM80-NOT:        tt.fp_to_fp
// SM80:            "tt.bitcast"(%[[CODES]]) : ({{.*}}xi8>
// SM80:            "tt.dot"({{.*}}xbf16>, {{.*}}xbf16>
func.func @codes(%x: !plain, %w: !qfuse.qtensor<tensor<256x512xf8E4M3FN>, #weight>) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!plain, !qfuse.qtensor<tensor<256x512xf8E4M3FN>, #weight>) -> !y
  return %0 : !y
}

// Groups of 32 (q8_0): exact products in i32, a scale for each row of x and of w; those of x lie
// by columns, M apart, and are read one after the other.
// CHECK:       kernel matmul_2
// CHECK:       ^bb0(%{{.+}}: !tt.ptr<i8>, %[[XS:.+]]: !tt.ptr<f16>, %{{.+}}: !tt.ptr<i8>, %[[WS:.+]]: !tt.ptr<f16>, %{{.+}}: !tt.ptr<bf16>, %[[M:.+]]: i32):
// CHECK:         %{{.+}}:3 = scf.for {{.*}} iter_args(%[[SUM:.+]] = %{{.+}}, %[[SX:.+]] = %{{.+}}, %[[SW:.+]] = %{{.+}}) -> (tensor<[[R2:[0-9]+]]x[[C2:[0-9]+]]xf32>, tensor<[[R2]]x1xf32>, tensor<1x[[C2]]xf32>)
// CHECK:           arith.muli %{{.+}}, %[[M]] : i32
// CHECK:           %[[XF:.+]] = "tt.load"({{.*}} -> tensor<[[R2]]xf16>
// CHECK-NEXT:      arith.extf %[[XF]]
// CHECK:           %[[P:.+]] = "tt.dot"({{.*}} : (tensor<[[R2]]x32xi8>, tensor<32x[[C2]]xi8>, tensor<[[R2]]x[[C2]]xi32>)
// CHECK-NEXT:      %[[PF:.+]] = arith.sitofp %[[P]]
// CHECK-NEXT:      %[[SXB:.+]] = "tt.broadcast"(%[[SX]])
// CHECK-NEXT:      %[[SWB:.+]] = "tt.broadcast"(%[[SW]])
// CHECK-NEXT:      %[[SB:.+]] = arith.mulf %[[SXB]], %[[SWB]]
// CHECK-NEXT:      "tt.elementwise_inline_asm"(%[[PF]], %[[SB]], %[[SUM]])
func.func @groups(%x: !qfuse.qtensor<tensor<?x512xi8>, #columns>, %w: !qfuse.qtensor<tensor<256x512xi8>, #rows>) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x512xi8>, #columns>, !qfuse.qtensor<tensor<256x512xi8>, #rows>) -> !y
  return %0 : !y
}
