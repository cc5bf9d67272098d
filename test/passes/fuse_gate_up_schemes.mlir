// RUN: qfuse-opt --qfuse-fuse-gate-up --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-gate-up --split-input-file --verify-diagnostics %s

// Gate and up of every scheme are joined, codes and scales as they are.

// Whole blocks: nothing lies between the parts.
// CHECK-LABEL: func.func @e4m3_blocks
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<512x512xf8E4M3FN>
// CHECK:         parts = array<i64: 256, 256>
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<256x512xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
!y = tensor<?x256xbf16>
func.func @e4m3_blocks(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches, 2576 B a row}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// A part that ends within a block: the next one begins at a block boundary all the same.
// CHECK-LABEL: func.func @e4m3_blocks_ragged
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<456x512xf8E4M3FN>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @e4m3_blocks_ragged(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Scales that are powers of two.
// CHECK-LABEL: func.func @e4m3_e8m0
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<456x512xf8E4M3FN>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f8E8M0FNU, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @e4m3_e8m0(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// One scale for each channel, and for each token.
// CHECK-LABEL: func.func @e4m3_by_channel
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xf8E4M3FN>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @e4m3_by_channel(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// The other FP8.
// CHECK-LABEL: func.func @e5m2_by_channel
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xf8E5M2>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xf8E5M2>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @e5m2_by_channel(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// W8A8.
// CHECK-LABEL: func.func @i8_by_channel
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xi8>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xi8>, #qfuse.scheme<array<i64: 1, 512>, bf16, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @i8_by_channel(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// W8A16.
// CHECK-LABEL: func.func @i8_by_channel_alone
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xi8>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = tensor<?x512xbf16>
!w = !qfuse.qtensor<tensor<200x512xi8>, #qfuse.scheme<array<i64: 1, 512>, bf16, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @i8_by_channel_alone(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// W4A16 in groups of 32.
// CHECK-LABEL: func.func @int4_32
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xi4>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = tensor<?x512xbf16>
!w = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @int4_32(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// The same with zero points, which are joined as the scales are.
// CHECK-LABEL: func.func @int4_32_zeros
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xi4>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = tensor<?x512xbf16>
!w = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "int", "row_major">>
!y = tensor<?x200xbf16>
func.func @int4_32_zeros(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// W4A16 in groups of 64.
// CHECK-LABEL: func.func @int4_64
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xi4>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = tensor<?x512xbf16>
!w = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 64>, bf16, "int4", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @int4_64(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// The same with zero points, which are joined as the scales are.
// CHECK-LABEL: func.func @int4_64_zeros
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xi4>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = tensor<?x512xbf16>
!w = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 64>, bf16, "int4", "int", "row_major">>
!y = tensor<?x200xbf16>
func.func @int4_64_zeros(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// W4A16 in groups of 128.
// CHECK-LABEL: func.func @int4_128
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xi4>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = tensor<?x512xbf16>
!w = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @int4_128(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// The same with zero points, which are joined as the scales are.
// CHECK-LABEL: func.func @int4_128_zeros
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xi4>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = tensor<?x512xbf16>
!w = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "int", "row_major">>
!y = tensor<?x200xbf16>
func.func @int4_128_zeros(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// W4A8.
// CHECK-LABEL: func.func @int4_q8_1
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xi4>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @int4_q8_1(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// ggml's formats are rows of blocks.
// CHECK-LABEL: func.func @q8_0
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xi8>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "none", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @q8_0(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// 4 bits with an f16 scale.
// CHECK-LABEL: func.func @q4_0
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xi4>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 32>, f16, "int4", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @q4_0(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Superblocks of 256 columns, packed scales and minima.
// CHECK-LABEL: func.func @q4_k
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xi4>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @q4_k(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// 6 bits.
// CHECK-LABEL: func.func @q6_k
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xi6>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!w = !qfuse.qtensor<tensor<200x512xi6>, #qfuse.scheme<array<i64: 1, 256>, i8, "q6_k", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @q6_k(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// E2M1 codes with e8m0 scales.
// CHECK-LABEL: func.func @mxfp4
// CHECK:         "qfuse.concat"
// CHECK-SAME:      -> !qfuse.qtensor<tensor<400x512xf4E2M1FN>
// CHECK:         parts = array<i64: 200, 200>
// CHECK-NOT:     "qfuse.glu"
!x = tensor<?x512xbf16>
!w = !qfuse.qtensor<tensor<200x512xf4E2M1FN>, #qfuse.scheme<array<i64: 1, 32>, f8E8M0FNU, "fp4", "none", "row_major">>
!y = tensor<?x200xbf16>
func.func @mxfp4(%x: !x, %g: !w, %u: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 200>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{gate-up: fired at qfuse.glu: saves 2 launches}}
  %2 = "qfuse.glu"(%0, %1) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}
