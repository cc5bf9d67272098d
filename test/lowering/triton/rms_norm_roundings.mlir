// RUN: qfuse-translate --to=ttir %s | filecheck %s

// A norm that rounds once, after its weight, which it adds 1 to (Gemma); the same row, rounded
// before the weight as well (Llama).

!x = tensor<?x512xf16>

// CHECK:       kernel rms_norm_0
// CHECK-DAG:     %[[ONE:.+]] = arith.constant dense<1.000000e+00> : tensor<1x512xf32>
// CHECK-DAG:     %[[WIDTH:.+]] = arith.constant dense<5.120000e+02>
// CHECK-DAG:     %[[EPS:.+]] = arith.constant dense<9.99999974E-6>
// CHECK:         %[[H:.+]] = arith.extf %{{.+}} to tensor<[[R:[0-9]+]]x512xf32>
// CHECK-NEXT:    %[[SQUARE:.+]] = arith.mulf %[[H]], %[[H]]
// CHECK-NEXT:    %[[SUM:.+]] = "tt.reduce"(%[[SQUARE]])
// CHECK:         %[[MEAN:.+]] = "tt.precise_divf"(%{{.+}}, %[[WIDTH]])
// CHECK-NEXT:    %[[SAFE:.+]] = arith.addf %[[MEAN]], %[[EPS]]
// CHECK-NEXT:    %[[ROOT:.+]] = "tt.precise_sqrt"(%[[SAFE]])
// CHECK-NEXT:    %[[INVERSE:.+]] = "tt.precise_divf"(%{{.+}}, %[[ROOT]])
// CHECK-NEXT:    %[[INVERSES:.+]] = "tt.broadcast"(%[[INVERSE]])
// CHECK-NEXT:    %[[NORMED:.+]] = arith.mulf %[[H]], %[[INVERSES]]
// CHECK:         %[[W:.+]] = arith.addf %{{.+}}, %[[ONE]] : tensor<1x512xf32>
// CHECK-NEXT:    %[[WS:.+]] = "tt.broadcast"(%[[W]])
// CHECK-NEXT:    %[[Y:.+]] = arith.mulf %[[NORMED]], %[[WS]]
// CHECK-NEXT:    %[[ROUNDED:.+]] = arith.truncf %[[Y]] : tensor<[[R]]x512xf32> to tensor<[[R]]x512xf16>
// CHECK:         "tt.store"(%{{.+}}, %[[ROUNDED]], %{{.+}})

// CHECK:       kernel rms_norm_1
// CHECK:         "tt.precise_sqrt"
// CHECK:         %[[NORMED:.+]] = arith.mulf
// CHECK-NOT:     arith.addf
// CHECK:         %[[NROUNDED:.+]] = arith.truncf %[[NORMED]]
// CHECK-NEXT:    %[[N:.+]] = arith.extf %[[NROUNDED]]
// CHECK:         %[[Y:.+]] = arith.mulf %[[N]], %{{.+}}
// CHECK-NEXT:    arith.truncf %[[Y]]
func.func @main(%x: !x, %w: tensor<512xf16>) -> (!x, !x) {
  %0 = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-5 : f64, offset = 1.0 : f64, rounding = "after", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xf16>) -> !x
  %1 = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-5 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xf16>) -> !x
  return %0, %1 : !x, !x
}
