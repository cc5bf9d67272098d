// RUN: qfuse-translate --to=ttir %s | filecheck %s

// Quantization on its own: one scale per row, per group with scales by columns, and back.

#token = #qfuse.scheme<array<i64: 1, 1400>, f32, "none", "none", "row_major">
#group = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">
#block = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x1400xbf16>
!t = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #token>
!g = !qfuse.qtensor<tensor<?x1400xf8E5M2>, #group>
!b = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #block>

// One scale per row: a program holds whole rows.
// CHECK:       kernel quantize_0 for {{.*}} grid (ceil(M / [[ROWS:[0-9]+]]) * 1, 1)
// CHECK-DAG:     %[[LARGEST:.+]] = arith.constant dense<4.480000e+02> : tensor<[[ROWS]]xf32>
// CHECK-DAG:     %[[FLOOR:.+]] = arith.constant dense<1.000000e-10> : tensor<[[ROWS]]xf32>

// What lies beyond the row counts as zero.
// CHECK:         %[[V:.+]] = arith.select %{{.+}}, %{{.+}}, %{{.+}} : tensor<1x2048xi1>, tensor<[[ROWS]]x2048xf32>
// CHECK-NEXT:    %[[ABS:.+]] = math.absf %[[V]]
// CHECK-NEXT:    %[[MAX:.+]] = "tt.reduce"(%[[ABS]]) ({
// CHECK:           arith.maximumf
// CHECK:         }) {axis = 1 : i32}
// CHECK-NEXT:    %[[AMAX:.+]] = arith.maximumf %[[MAX]], %[[FLOOR]]

// Both divisions are IEEE's, as in the CPU's kernels.
// CHECK-NEXT:    %[[SCALE:.+]] = "tt.precise_divf"(%[[AMAX]], %[[LARGEST]])
// CHECK-NEXT:    %[[INVERSE:.+]] = "tt.precise_divf"(%[[LARGEST]], %[[AMAX]])
// CHECK:         %[[SCALED:.+]] = arith.mulf %[[V]], %{{.+}}
// CHECK-NEXT:    %[[CODES:.+]] = "tt.fp_to_fp"(%[[SCALED]]) {rounding = 1 : i32} : {{.*}}xf8E4M3FN>
// CHECK:         "tt.store"({{.*}} : (tensor<[[ROWS]]x1x!tt.ptr<f32>>
// CHECK:         "tt.store"(%{{.+}}, %[[CODES]], %{{.+}})

// One scale per 128 columns; a row has 11, and they lie M apart.
// CHECK:       kernel quantize_1
// CHECK:       ^bb0(%{{.+}}: !tt.ptr<bf16>, %{{.+}}: !tt.ptr<f8E5M2>, %[[SCALES:.+]]: !tt.ptr<f32>, %[[M:.+]]: i32):
// CHECK-DAG:     arith.constant dense<5.734400e+04>
// CHECK:         "tt.reduce"({{.*}}
// CHECK:         }) {axis = 2 : i32} : (tensor<[[R:[0-9]+]]x[[G:[0-9]+]]x128xf32>) -> tensor<[[R]]x[[G]]xf32>
// CHECK:         %[[FIRST:.+]] = arith.muli %[[BLOCK:.+]], %[[M]] : i32
// CHECK:         %[[STRIDE:.+]] = "tt.splat"(%[[M]]) : (i32) -> tensor<1x[[G]]xi32>
// CHECK-NEXT:    arith.muli %{{.+}}, %[[STRIDE]]
// CHECK:         %[[LEFT:.+]] = arith.subi %c11_i32, %[[BLOCK]] : i32
// CHECK-NEXT:    %[[LEFTS:.+]] = "tt.splat"(%[[LEFT]])
// CHECK-NEXT:    %[[THERE:.+]] = arith.cmpi slt, %{{.+}}, %[[LEFTS]]
// CHECK:         "tt.store"({{.*}} : (tensor<[[R]]x[[G]]x!tt.ptr<f32>>

// A code times the scale of its block of 128 x 128.
// CHECK:       kernel dequantize_0
// CHECK-DAG:     %[[SIDE:.+]] = arith.constant dense<128> : tensor<1x[[W:[0-9]+]]xi32>
// CHECK-DAG:     %[[BLOCKS:.+]] = arith.constant dense<11>
// CHECK:         %[[C:.+]] = "tt.load"({{.*}}xf8E4M3FN>
// CHECK:         arith.divsi %{{.+}}, %[[SIDE]]
// CHECK:         arith.muli %{{.+}}, %[[BLOCKS]]
// CHECK:         %[[S:.+]] = "tt.load"({{.*}}xf32>
// CHECK:         %[[F:.+]] = "tt.fp_to_fp"(%[[C]]) : {{.*}}xf32>
// CHECK-NEXT:    %[[Y:.+]] = arith.mulf %[[F]], %[[S]]
// CHECK-NEXT:    arith.truncf %[[Y]]
// CHECK-NOT:   // kernel
func.func @main(%x: !x, %b: !b) -> (!t, !g, !x) {
  %0 = "qfuse.quantize"(%x) : (!x) -> !t
  %1 = "qfuse.quantize"(%x) : (!x) -> !g
  %2 = "qfuse.dequantize"(%b) : (!b) -> !x
  return %0, %1, %2 : !t, !g, !x
}
