// Each of these is one line that says what, where, why and what would do, and exit code 1.

// RUN: not qfuse-translate --to=ttir %s 2>&1 | filecheck %s --check-prefix CHOICES
// CHOICES:     qfuse-translate: error: qfuse.group_matmul at loc({{.*}}): tokens are tensor<?x?xi32>; the number of choices must be static, and one at least
// CHOICES-NOT: {{.}}

// RUN: sed 's/?x?/?x8/g' %s | not qfuse-translate --to=ttir 2>&1 | filecheck %s --check-prefix LAYOUT
// LAYOUT:     qfuse-translate: error: qfuse.group_matmul at loc({{.*}}): w has col_major scales; GPU kernels read those of experts row by row
// LAYOUT-NOT: {{.}}

// RUN: sed 's/?x?/?x8/g; s/col_major/row_major/; s/i64: 1,/i64: 2,/' %s | not qfuse-translate --to=ttir 2>&1 | filecheck %s --check-prefix ROWS
// ROWS:     qfuse-translate: error: qfuse.group_matmul at loc({{.*}}): x is scaled per 2 rows, which experts do not share; use 1
// ROWS-NOT: {{.}}

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "col_major">
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<4x256x512xf8E4M3FN>, #weight>
!y = tensor<?x?x256xbf16>
func.func @main(%x: !x, %w: !w, %indptr: tensor<5xi32>, %tokens: tensor<?x?xi32>) -> !y {
  %0 = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, tensor<5xi32>, tensor<?x?xi32>) -> !y
  return %0 : !y
}
