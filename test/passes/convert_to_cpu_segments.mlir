// RUN: qfuse-opt --qfuse-convert-to-cpu %s | filecheck %s

// The one optional operand of a combine may go without segment sizes.
// CHECK-LABEL: func.func @main
// CHECK-NEXT:    call @combine_0
// CHECK:       func.func private @combine_0({{.*}}) {{.*}}qfuse.rows = array<i64: 1, 1>
func.func @main(%y: tensor<?x2x64xbf16>, %slots: tensor<?x2xi32>, %weights: tensor<?x2xf32>) -> tensor<?x64xbf16> {
  %0 = "qfuse.combine"(%y, %slots, %weights) : (tensor<?x2x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>) -> tensor<?x64xbf16>
  return %0 : tensor<?x64xbf16>
}
