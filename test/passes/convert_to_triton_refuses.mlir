// RUN: not qfuse-opt --qfuse-convert-to-triton %s 2>&1 | filecheck %s

// What has no GPU kernel is refused with the reason, and never left behind.
// CHECK:     qfuse-opt: error: qfuse.matmul at loc({{.*}}): w stores i8 with packing "q8_1"; GPU kernels read w with none, int4, fp4, q4_k, q6_k
// CHECK-NOT: Traceback
#weight = #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">
!x = tensor<?x512xbf16>
!w = !qfuse.qtensor<tensor<512x512xi8>, #weight>
func.func @main(%x: !x, %w: !w) -> !x {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !x
  return %0 : !x
}
