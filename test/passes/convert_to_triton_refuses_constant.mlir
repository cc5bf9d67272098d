// RUN: not qfuse-opt --qfuse-convert-to-triton %s 2>&1 | filecheck %s

// CHECK:     qfuse-opt: error: qfuse.matmul at loc({{.*}}): result 0 does not depend on the product; compute it by operations of its own
// CHECK-NOT: Traceback
func.func @main(%x: tensor<?x512xbf16>, %w: tensor<512x512xbf16>, %b: tensor<512xbf16>) -> tensor<?x512xbf16> {
  %0 = "qfuse.matmul"(%x, %w, %b) ({
  ^bb0(%acc: f32, %bias: f32):
    "qfuse.yield"(%bias) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x512xbf16>, tensor<512x512xbf16>, tensor<512xbf16>) -> tensor<?x512xbf16>
  return %0 : tensor<?x512xbf16>
}
