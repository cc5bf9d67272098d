// Each of these is one line that says what, where, why and what would do, and exit code 1.

// RUN: not qfuse-translate --to=ttir %s 2>&1 | filecheck %s --check-prefix TYPES
// TYPES:      qfuse-translate: error: qfuse.matmul at loc({{.*}}): multiplies f8E4M3FN by i8; both operands must store FP8, or both integers
// TYPES-NOT:  {{.}}

// RUN: sed s/512xi8/512xf8E4M3FN/ %s | not qfuse-translate --to=ttir 2>&1 | filecheck %s --check-prefix REGION
// REGION:     qfuse-translate: error: qfuse.matmul at loc({{.*}}): 'math.log' has no Triton form; use one of arith.addf, {{.*}}, math.tanh, qfuse.with_scale
// REGION-NOT: {{.}}

// RUN: sed 's/512xi8/512xf8E4M3FN/; s/math.log/math.exp/; s/128/48/g' %s | not qfuse-translate --to=ttir 2>&1 | filecheck %s --check-prefix BLOCK
// BLOCK:      qfuse-translate: error: qfuse.matmul at loc({{.*}}): x is scaled per 48 of K; GPU kernels take multiples of 32
// BLOCK-NOT:  {{.}}

// RUN: not qfuse-translate --to=ttir --target=cuda:sm_75 %s 2>&1 | filecheck %s --check-prefix TARGET
// TARGET:     qfuse-translate: error: unknown GPU target 'cuda:sm_75'; the nearest supported one is 'cuda:sm_90' (there are {{.*}})
// TARGET-NOT: {{.}}

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<256x512xi8>, #weight>
!y = tensor<?x256xbf16>
func.func @main(%x: !x, %w: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %v = math.log %acc : f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  return %0 : !y
}
