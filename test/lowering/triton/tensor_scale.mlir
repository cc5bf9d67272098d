// RUN: qfuse-translate --to=ttir %s | filecheck %s

// The scale of a whole tensor, and a quantization that is given it; scales that are powers of two.

#tensor = #qfuse.scheme<array<i64: 1, 1000>, f32, "none", "none", "row_major">
#e8m0 = #qfuse.scheme<array<i64: 1, 128>, f8E8M0FNU, "none", "none", "row_major">
!x = tensor<?x1000xbf16>
!t = !qfuse.qtensor<tensor<?x1000xi8>, #tensor>
!e = !qfuse.qtensor<tensor<?x1000xf8E4M3FN>, #e8m0>

// Each program has the largest magnitude of its rows; a NaN is larger than any number.
// CHECK:       kernel tensor_scale_0 for {{.*}}: tensor_scale_0_maxima, grid (ceil(M / [[ROWS:[0-9]+]]) * 1, 1)
// CHECK:         math.absf %{{.+}} : tensor<[[ROWS]]x1024xf32>
// CHECK:         "tt.reduce"
// CHECK:           arith.maximumf
// CHECK:         }) {axis = 1 : i32}
// CHECK:         "tt.reduce"
// CHECK:         "tt.store"({{.*}} : (!tt.ptr<f32>, f32) -> ()

// Then one program has that of all of them, and divides it as IEEE says.
// CHECK:       kernel tensor_scale_0 for {{.*}}: tensor_scale_0, grid (min(ceil(M / 1) * 1, 1), 1)
// CHECK:         scf.for
// CHECK:           arith.maximumf
// CHECK:         "tt.reduce"
// CHECK:         %[[AMAX:.+]] = arith.maximumf
// CHECK:         "tt.precise_divf"
// CHECK-NEXT:    "tt.store"

// By a given scale: each quotient saturated, here in i8; all rows get the scale.
// CHECK:       kernel quantize_0
// CHECK:       ^bb0(%{{.+}}: !tt.ptr<bf16>, %[[S:.+]]: !tt.ptr<f32>, %{{.+}}: !tt.ptr<i8>, %[[SCALES:.+]]: !tt.ptr<f32>, %{{.+}}: i32):
// CHECK:         %[[SCALE:.+]] = "tt.load"(%[[S]])
// CHECK-NOT:     "tt.reduce"
// CHECK:         %[[SPLAT:.+]] = "tt.splat"(%[[SCALE]])
// CHECK-NEXT:    %[[Q:.+]] = "tt.precise_divf"(%{{.+}}, %[[SPLAT]])
// CHECK-NEXT:    %[[MIN:.+]] = arith.minimumf %[[Q]]
// CHECK-NEXT:    arith.maximumf %[[MIN]]
// CHECK:         "tt.addptr"(%[[SCALES]]
// CHECK:         "tt.store"({{.*}} : (tensor<{{.*}}x!tt.ptr<f32>>

// To e8m0: the exponent is rounded up, and its byte is stored.
// CHECK:       kernel quantize_1
// CHECK:       ^bb0(%{{.+}}: !tt.ptr<bf16>, %{{.+}}: !tt.ptr<f8E4M3FN>, %{{.+}}: !tt.ptr<i8>, %{{.+}}: i32):
// CHECK-DAG:     %[[CARRY:.+]] = arith.constant dense<8388607> : tensor<{{.*}}xi32>
// CHECK:         %[[LEAST:.+]] = "tt.precise_divf"
// CHECK-NEXT:    %[[BITS:.+]] = "tt.bitcast"(%[[LEAST]])
// CHECK-NEXT:    %[[UP:.+]] = arith.addi %[[BITS]], %[[CARRY]]
// CHECK-NEXT:    arith.shrui %[[UP]]
// CHECK:         "tt.precise_divf"
// CHECK:         "tt.store"({{.*}}x!tt.ptr<i8>>, tensor<{{.*}}xi8>
func.func @main(%x: !x) -> (!t, !e) {
  %s = "qfuse.tensor_scale"(%x) {storage = i8} : (!x) -> tensor<1xf32>
  %0 = "qfuse.quantize"(%x, %s) : (!x, tensor<1xf32>) -> !t
  %1 = "qfuse.quantize"(%x) : (!x) -> !e
  return %0, %1 : !t, !e
}
