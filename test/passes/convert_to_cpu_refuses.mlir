// RUN: not qfuse-opt --qfuse-convert-to-cpu %s 2>&1 | filecheck %s

// Outlined as it is, this product would leave its input unquantized without a word.
// CHECK:     qfuse-opt: error: qfuse.matmul at loc({{.*}}): the quantization of its input is still part of it; run qfuse-expand-quantize first
// CHECK-NOT: Traceback
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!w = !qfuse.qtensor<tensor<512x512xf8E4M3FN>, #weight>
func.func @main(%x: !x, %w: !w) -> !x {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #act, parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !x
  return %0 : !x
}
