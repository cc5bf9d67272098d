// RUN: qfuse-opt --qfuse-fuse-qkv --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-qkv --split-input-file --verify-diagnostics %s

// Siblings of every scheme and unequal widths are joined; those of another stay alone.

// One scale for each channel, and for each token.
// CHECK-LABEL: func.func @e4m3_by_channel
// CHECK:         "qfuse.concat"
// CHECK:         parts = array<i64: 512, 130, 130>
!x = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!w0 = !qfuse.qtensor<tensor<512x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!y0 = tensor<?x512xbf16>
!w1 = !qfuse.qtensor<tensor<130x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!y1 = tensor<?x130xbf16>
!w2 = !qfuse.qtensor<tensor<130x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!y2 = tensor<?x130xbf16>
func.func @e4m3_by_channel(%x: !x, %w0: !w0, %w1: !w1, %w2: !w2) -> (!y0, !y1, !y2) {
  // expected-remark @+1 {{siblings: fired at qfuse.matmul: saves 2 launches, 1032 B a row}}
  %0 = "qfuse.matmul"(%x, %w0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w0) -> !y0
  %1 = "qfuse.matmul"(%x, %w1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w1) -> !y1
  %2 = "qfuse.matmul"(%x, %w2) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w2) -> !y2
  return %0, %1, %2 : !y0, !y1, !y2
}

// -----

// W8A8.
// CHECK-LABEL: func.func @i8_by_channel
// CHECK:         "qfuse.concat"
// CHECK:         parts = array<i64: 512, 130, 130>
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>
!w0 = !qfuse.qtensor<tensor<512x512xi8>, #qfuse.scheme<array<i64: 1, 512>, bf16, "none", "none", "row_major">>
!y0 = tensor<?x512xbf16>
!w1 = !qfuse.qtensor<tensor<130x512xi8>, #qfuse.scheme<array<i64: 1, 512>, bf16, "none", "none", "row_major">>
!y1 = tensor<?x130xbf16>
!w2 = !qfuse.qtensor<tensor<130x512xi8>, #qfuse.scheme<array<i64: 1, 512>, bf16, "none", "none", "row_major">>
!y2 = tensor<?x130xbf16>
func.func @i8_by_channel(%x: !x, %w0: !w0, %w1: !w1, %w2: !w2) -> (!y0, !y1, !y2) {
  // expected-remark @+1 {{siblings: fired at qfuse.matmul: saves 2 launches}}
  %0 = "qfuse.matmul"(%x, %w0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w0) -> !y0
  %1 = "qfuse.matmul"(%x, %w1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w1) -> !y1
  %2 = "qfuse.matmul"(%x, %w2) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w2) -> !y2
  return %0, %1, %2 : !y0, !y1, !y2
}

// -----

// W4A16.
// CHECK-LABEL: func.func @int4
// CHECK:         "qfuse.concat"
// CHECK:         parts = array<i64: 512, 130, 130>
!x = tensor<?x512xbf16>
!w0 = !qfuse.qtensor<tensor<512x512xi4>, #qfuse.scheme<array<i64: 1, 64>, bf16, "int4", "none", "row_major">>
!y0 = tensor<?x512xbf16>
!w1 = !qfuse.qtensor<tensor<130x512xi4>, #qfuse.scheme<array<i64: 1, 64>, bf16, "int4", "none", "row_major">>
!y1 = tensor<?x130xbf16>
!w2 = !qfuse.qtensor<tensor<130x512xi4>, #qfuse.scheme<array<i64: 1, 64>, bf16, "int4", "none", "row_major">>
!y2 = tensor<?x130xbf16>
func.func @int4(%x: !x, %w0: !w0, %w1: !w1, %w2: !w2) -> (!y0, !y1, !y2) {
  // expected-remark @+1 {{siblings: fired at qfuse.matmul: saves 2 launches, 2048 B a row}}
  %0 = "qfuse.matmul"(%x, %w0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w0) -> !y0
  %1 = "qfuse.matmul"(%x, %w1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w1) -> !y1
  %2 = "qfuse.matmul"(%x, %w2) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w2) -> !y2
  return %0, %1, %2 : !y0, !y1, !y2
}

// -----

// Zero points are joined as the scales are.
// CHECK-LABEL: func.func @int4_zeros
// CHECK:         "qfuse.concat"
// CHECK:         parts = array<i64: 512, 130, 130>
!x = tensor<?x512xbf16>
!w0 = !qfuse.qtensor<tensor<512x512xi4>, #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "int", "row_major">>
!y0 = tensor<?x512xbf16>
!w1 = !qfuse.qtensor<tensor<130x512xi4>, #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "int", "row_major">>
!y1 = tensor<?x130xbf16>
!w2 = !qfuse.qtensor<tensor<130x512xi4>, #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "int", "row_major">>
!y2 = tensor<?x130xbf16>
func.func @int4_zeros(%x: !x, %w0: !w0, %w1: !w1, %w2: !w2) -> (!y0, !y1, !y2) {
  // expected-remark @+1 {{siblings: fired at qfuse.matmul: saves 2 launches}}
  %0 = "qfuse.matmul"(%x, %w0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w0) -> !y0
  %1 = "qfuse.matmul"(%x, %w1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w1) -> !y1
  %2 = "qfuse.matmul"(%x, %w2) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w2) -> !y2
  return %0, %1, %2 : !y0, !y1, !y2
}

// -----

// ggml's formats are rows of blocks.
// CHECK-LABEL: func.func @q8_0
// CHECK:         "qfuse.concat"
// CHECK:         parts = array<i64: 512, 130, 130>
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!w0 = !qfuse.qtensor<tensor<512x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "none", "none", "row_major">>
!y0 = tensor<?x512xbf16>
!w1 = !qfuse.qtensor<tensor<130x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "none", "none", "row_major">>
!y1 = tensor<?x130xbf16>
!w2 = !qfuse.qtensor<tensor<130x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "none", "none", "row_major">>
!y2 = tensor<?x130xbf16>
func.func @q8_0(%x: !x, %w0: !w0, %w1: !w1, %w2: !w2) -> (!y0, !y1, !y2) {
  // expected-remark @+1 {{siblings: fired at qfuse.matmul: saves 2 launches}}
  %0 = "qfuse.matmul"(%x, %w0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w0) -> !y0
  %1 = "qfuse.matmul"(%x, %w1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w1) -> !y1
  %2 = "qfuse.matmul"(%x, %w2) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w2) -> !y2
  return %0, %1, %2 : !y0, !y1, !y2
}

// -----

// Superblocks.
// CHECK-LABEL: func.func @q4_k
// CHECK:         "qfuse.concat"
// CHECK:         parts = array<i64: 512, 130, 130>
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!w0 = !qfuse.qtensor<tensor<512x512xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">>
!y0 = tensor<?x512xbf16>
!w1 = !qfuse.qtensor<tensor<130x512xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">>
!y1 = tensor<?x130xbf16>
!w2 = !qfuse.qtensor<tensor<130x512xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">>
!y2 = tensor<?x130xbf16>
func.func @q4_k(%x: !x, %w0: !w0, %w1: !w1, %w2: !w2) -> (!y0, !y1, !y2) {
  // expected-remark @+1 {{siblings: fired at qfuse.matmul: saves 2 launches}}
  %0 = "qfuse.matmul"(%x, %w0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w0) -> !y0
  %1 = "qfuse.matmul"(%x, %w1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w1) -> !y1
  %2 = "qfuse.matmul"(%x, %w2) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w2) -> !y2
  return %0, %1, %2 : !y0, !y1, !y2
}

// -----

// 6 bits.
// CHECK-LABEL: func.func @q6_k
// CHECK:         "qfuse.concat"
// CHECK:         parts = array<i64: 512, 130, 130>
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!w0 = !qfuse.qtensor<tensor<512x512xi6>, #qfuse.scheme<array<i64: 1, 256>, i8, "q6_k", "none", "row_major">>
!y0 = tensor<?x512xbf16>
!w1 = !qfuse.qtensor<tensor<130x512xi6>, #qfuse.scheme<array<i64: 1, 256>, i8, "q6_k", "none", "row_major">>
!y1 = tensor<?x130xbf16>
!w2 = !qfuse.qtensor<tensor<130x512xi6>, #qfuse.scheme<array<i64: 1, 256>, i8, "q6_k", "none", "row_major">>
!y2 = tensor<?x130xbf16>
func.func @q6_k(%x: !x, %w0: !w0, %w1: !w1, %w2: !w2) -> (!y0, !y1, !y2) {
  // expected-remark @+1 {{siblings: fired at qfuse.matmul: saves 2 launches}}
  %0 = "qfuse.matmul"(%x, %w0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w0) -> !y0
  %1 = "qfuse.matmul"(%x, %w1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w1) -> !y1
  %2 = "qfuse.matmul"(%x, %w2) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w2) -> !y2
  return %0, %1, %2 : !y0, !y1, !y2
}

// -----

// E2M1 codes.
// CHECK-LABEL: func.func @mxfp4
// CHECK:         "qfuse.concat"
// CHECK:         parts = array<i64: 512, 130, 130>
!x = tensor<?x512xbf16>
!w0 = !qfuse.qtensor<tensor<512x512xf4E2M1FN>, #qfuse.scheme<array<i64: 1, 32>, f8E8M0FNU, "fp4", "none", "row_major">>
!y0 = tensor<?x512xbf16>
!w1 = !qfuse.qtensor<tensor<130x512xf4E2M1FN>, #qfuse.scheme<array<i64: 1, 32>, f8E8M0FNU, "fp4", "none", "row_major">>
!y1 = tensor<?x130xbf16>
!w2 = !qfuse.qtensor<tensor<130x512xf4E2M1FN>, #qfuse.scheme<array<i64: 1, 32>, f8E8M0FNU, "fp4", "none", "row_major">>
!y2 = tensor<?x130xbf16>
func.func @mxfp4(%x: !x, %w0: !w0, %w1: !w1, %w2: !w2) -> (!y0, !y1, !y2) {
  // expected-remark @+1 {{siblings: fired at qfuse.matmul: saves 2 launches}}
  %0 = "qfuse.matmul"(%x, %w0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w0) -> !y0
  %1 = "qfuse.matmul"(%x, %w1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w1) -> !y1
  %2 = "qfuse.matmul"(%x, %w2) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w2) -> !y2
  return %0, %1, %2 : !y0, !y1, !y2
}

// -----

// As in Q4_K_M files: q and k are one product, v stays with its own.
// CHECK-LABEL: func.func @v_has_more_bits
// CHECK:         parts = array<i64: 512, 130>
// CHECK:         parts = array<i64: 130>
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!w0 = !qfuse.qtensor<tensor<512x512xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">>
!y0 = tensor<?x512xbf16>
!w1 = !qfuse.qtensor<tensor<130x512xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">>
!y1 = tensor<?x130xbf16>
!w2 = !qfuse.qtensor<tensor<130x512xi6>, #qfuse.scheme<array<i64: 1, 256>, i8, "q6_k", "none", "row_major">>
!y2 = tensor<?x130xbf16>
func.func @v_has_more_bits(%x: !x, %w0: !w0, %w1: !w1, %w2: !w2) -> (!y0, !y1, !y2) {
  // expected-remark @+1 {{siblings: fired at qfuse.matmul: saves 1 launch, 576 B a row}}
  %0 = "qfuse.matmul"(%x, %w0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w0) -> !y0
  %1 = "qfuse.matmul"(%x, %w1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w1) -> !y1
  // expected-remark @+1 {{siblings: refused at qfuse.matmul: weights are stored as i4 and i6; quantize both alike}}
  %2 = "qfuse.matmul"(%x, %w2) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w2) -> !y2
  return %0, %1, %2 : !y0, !y1, !y2
}

// -----

// Zero points on one side.
// CHECK-LABEL: func.func @zero_points
// CHECK-NOT:     "qfuse.concat"
!x = tensor<?x512xbf16>
!w0 = !qfuse.qtensor<tensor<512x512xi4>, #qfuse.scheme<array<i64: 1, 64>, bf16, "int4", "none", "row_major">>
!y0 = tensor<?x512xbf16>
!w1 = !qfuse.qtensor<tensor<130x512xi4>, #qfuse.scheme<array<i64: 1, 64>, bf16, "int4", "int", "row_major">>
!y1 = tensor<?x130xbf16>
func.func @zero_points(%x: !x, %w0: !w0, %w1: !w1) -> (!y0, !y1) {
  // expected-remark @+1 {{siblings: refused at qfuse.matmul: weight schemes differ}}
  %0 = "qfuse.matmul"(%x, %w0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w0) -> !y0
  // expected-remark @+1 {{siblings: refused at qfuse.matmul: weight schemes differ}}
  %1 = "qfuse.matmul"(%x, %w1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w1) -> !y1
  return %0, %1 : !y0, !y1
}

// -----

// Each layer for itself.
// CHECK-LABEL: func.func @layers_differ
// CHECK:         parts = array<i64: 512, 130>
// CHECK:         parts = array<i64: 512>
// CHECK:         parts = array<i64: 130>
!x = !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
!y = tensor<?x512xbf16>
!z = tensor<?x130xbf16>
!q4 = !qfuse.qtensor<tensor<512x512xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">>
!k4 = !qfuse.qtensor<tensor<130x512xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">>
!k6 = !qfuse.qtensor<tensor<130x512xi6>, #qfuse.scheme<array<i64: 1, 256>, i8, "q6_k", "none", "row_major">>
func.func @layers_differ(%x: !x, %q0: !q4, %k0: !k4, %q1: !q4, %k1: !k6) -> (!z, !y, !z) {
  // expected-remark @+1 {{siblings: fired at qfuse.matmul}}
  %0 = "qfuse.matmul"(%x, %q0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !q4) -> !y
  %1 = "qfuse.matmul"(%x, %k0) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !k4) -> !z
  %2 = "qfuse.quantize"(%0) : (!y) -> !x
  // expected-remark @+1 {{siblings: refused at qfuse.matmul: weights are stored as i4 and i6}}
  %3 = "qfuse.matmul"(%2, %q1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !q4) -> !y
  // expected-remark @+1 {{siblings: refused at qfuse.matmul: weights are stored as i4 and i6}}
  %4 = "qfuse.matmul"(%2, %k1) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !k6) -> !z
  return %1, %3, %4 : !z, !y, !z
}

// -----

// By one static scale, the value is quantized once; the other scale leaves its product alone.
// CHECK-LABEL: func.func @static_scales
// CHECK:         "qfuse.concat"
// CHECK:         %[[Y:.+]]:2 = "qfuse.matmul"
// CHECK:         %[[Q:.+]] = "qfuse.quantize"
// CHECK:         %[[Z:.+]] = "qfuse.matmul"(%[[Q]]
#static = #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #static>
!w = !qfuse.qtensor<tensor<256x512xf8E4M3FN>, #static>
!y = tensor<?x256xbf16>
!s = tensor<1xf32>
func.func @static_scales(%x: !x, %wq: !w, %wk: !w, %wv: !w, %s: !s {qfuse.name = "q.input_scale"}, %t: !s {qfuse.name = "v.input_scale"}) -> (!y, !y, !y) {
  %0 = "qfuse.quantize"(%x, %s) : (!x, !s) -> !xq
  // expected-remark @+1 {{siblings: fired}}
  %q = "qfuse.matmul"(%0, %wq) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %k = "qfuse.matmul"(%0, %wk) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.quantize"(%x, %t) : (!x, !s) -> !xq
  // expected-remark @+1 {{siblings: refused at qfuse.matmul: the products read one value quantized by different scales, v.input_scale and q.input_scale; quantize it by one scale for both}}
  %v = "qfuse.matmul"(%1, %wv) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  return %q, %k, %v : !y, !y, !y
}
