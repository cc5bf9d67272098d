// RUN: qfuse-opt %s | qfuse-opt | filecheck %s

// Every operation of the dialect, printed and read again.

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
!w2 = !qfuse.qtensor<tensor<386x300xf8E4M3FN>, #weight>

#w8 = #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">
#w4 = #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "none", "row_major">
#w4z = #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "int", "row_major">
#q4k = #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">
#q6k = #qfuse.scheme<array<i64: 1, 256>, i8, "q6_k", "none", "row_major">
#mx = #qfuse.scheme<array<i64: 1, 32>, f8E8M0FNU, "fp4", "none", "row_major">
#q8_1 = #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">

// Ragged extents have one scale for the last, partial block: ceil(130/128) x ceil(300/128).
// CHECK-LABEL: func.func @components
// CHECK: "qfuse.pack"{{.*}}tensor<130x300xf8E4M3FN>, tensor<2x3xf32>
// CHECK: "qfuse.unpack"{{.*}}(tensor<130x300xf8E4M3FN>, tensor<2x3xf32>)
func.func @components(%d: tensor<130x300xf8E4M3FN>, %s: tensor<2x3xf32>) -> (tensor<130x300xf8E4M3FN>, tensor<2x3xf32>) {
  %w = "qfuse.pack"(%d, %s) : (tensor<130x300xf8E4M3FN>, tensor<2x3xf32>) -> !wq
  %data, %scale = "qfuse.unpack"(%w) : (!wq) -> (tensor<130x300xf8E4M3FN>, tensor<2x3xf32>)
  return %data, %scale : tensor<130x300xf8E4M3FN>, tensor<2x3xf32>
}

// CHECK-LABEL: func.func @quantization
// CHECK: "qfuse.quantize"
// CHECK: "qfuse.dequantize"
// CHECK: "qfuse.concat"
func.func @quantization(%x: tensor<?x300xbf16>, %a: !wq, %b: !wq) -> (tensor<?x300xbf16>, !w2) {
  %q = "qfuse.quantize"(%x) : (tensor<?x300xbf16>) -> !xq
  %y = "qfuse.dequantize"(%q) : (!xq) -> tensor<?x300xbf16>
  %w = "qfuse.concat"(%a, %b) {operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (!wq, !wq) -> !w2
  return %y, %w : tensor<?x300xbf16>, !w2
}

// CHECK-LABEL: func.func @product
// CHECK: "qfuse.matmul"
// CHECK-NEXT: ^bb0(%{{.*}}: f32, %{{.*}}: f32):
// CHECK-NEXT: arith.addf
// CHECK-NEXT: "qfuse.yield"
// CHECK-NEXT: maps = ["[N]"]
func.func @product(%x: !xq, %w: !wq, %bias: tensor<130xbf16>) -> tensor<?x130xbf16> {
  %y = "qfuse.matmul"(%x, %w, %bias) ({
  ^bb0(%acc: f32, %b: f32):
    %0 = arith.addf %acc, %b : f32
    "qfuse.yield"(%0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = ["[N]"],
      operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 0, 0, 0>}
     : (!xq, !wq, tensor<130xbf16>) -> tensor<?x130xbf16>
  return %y : tensor<?x130xbf16>
}

// Two parts of one weight meet in the epilogue; the result is quantized.
// CHECK-LABEL: func.func @merged_product
// CHECK: parts = array<i64: 130, 130>
func.func @merged_product(%x: !xq, %w: !w2, %r: tensor<?x130xbf16>, %c: tensor<?x1xf32>, %s: tensor<f32>) -> (tensor<?x130xf16>, !qfuse.qtensor<tensor<?x130xf8E4M3FN>, #act>) {
  %y, %q = "qfuse.matmul"(%x, %w, %r, %c, %s) ({
  ^bb0(%gate: f32, %up: f32, %res: f32, %column: f32, %scalar: f32):
    %0 = arith.mulf %gate, %up : f32
    %1 = arith.addf %0, %res : f32
    %2 = arith.mulf %1, %column : f32
    %3 = arith.mulf %2, %scalar : f32
    "qfuse.yield"(%3, %3) : (f32, f32) -> ()
  }) {parts = array<i64: 130, 130>, maps = ["[M,N]", "[M,1]", "[]"],
      operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 1, 0, 0>}
     : (!xq, !w2, tensor<?x130xbf16>, tensor<?x1xf32>, tensor<f32>)
     -> (tensor<?x130xf16>, !qfuse.qtensor<tensor<?x130xf8E4M3FN>, #act>)
  return %y, %q : tensor<?x130xf16>, !qfuse.qtensor<tensor<?x130xf8E4M3FN>, #act>
}

// Plain operands, leading dimensions, parts of different widths with a result each.
// CHECK-LABEL: func.func @plain_parts
// CHECK: parts = array<i64: 12, 4>
func.func @plain_parts(%x: tensor<2x?x8xbf16>, %w: tensor<16x8xbf16>) -> (tensor<2x?x12xbf16>, tensor<2x?x4xbf16>) {
  %a, %b = "qfuse.matmul"(%x, %w) ({
  ^bb0(%0: f32, %1: f32):
    "qfuse.yield"(%0, %1) : (f32, f32) -> ()
  }) {parts = array<i64: 12, 4>, maps = [],
      operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 1, 0, 0>}
     : (tensor<2x?x8xbf16>, tensor<16x8xbf16>) -> (tensor<2x?x12xbf16>, tensor<2x?x4xbf16>)
  return %a, %b : tensor<2x?x12xbf16>, tensor<2x?x4xbf16>
}

// CHECK-LABEL: func.func @norm
// CHECK: "qfuse.rms_norm"(%{{.*}}, %{{.*}}) {{.*}}array<i32: 1, 0, 0, 0>
// CHECK: "qfuse.rms_norm"(%{{.*}}, %{{.*}}, %{{.*}}) {{.*}}array<i32: 1, 1, 0, 1>
func.func @norm(%x: tensor<?x300xbf16>, %w: tensor<300xf32>) -> (tensor<?x300xbf16>, tensor<?x300xbf16>, !xq, tensor<?x300xbf16>) {
  %a = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x300xbf16>, tensor<300xf32>) -> tensor<?x300xbf16>
  %v, %q, %h = "qfuse.rms_norm"(%x, %w, %a) {eps = 1.0e-6 : f64, offset = 1.0 : f64, rounding = "after", operandSegmentSizes = array<i32: 1, 1, 1, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 1>} : (tensor<?x300xbf16>, tensor<300xf32>, tensor<?x300xbf16>) -> (tensor<?x300xbf16>, !xq, tensor<?x300xbf16>)
  return %a, %v, %q, %h : tensor<?x300xbf16>, tensor<?x300xbf16>, !xq, tensor<?x300xbf16>
}

// CHECK-LABEL: func.func @norm_in_two_formats
// CHECK: "qfuse.rms_norm"(%{{.*}}, %{{.*}}) {{.*}}operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, quantize_rounding = "f32", resultSegmentSizes = array<i32: 0, 1, 1, 0>
!x1 = !qfuse.qtensor<tensor<?x300xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
func.func @norm_in_two_formats(%x: tensor<?x300xbf16>, %w: tensor<300xf32>) -> (!xq, !x1) {
  %q:2 = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, quantize_rounding = "f32", resultSegmentSizes = array<i32: 0, 1, 1, 0>} : (tensor<?x300xbf16>, tensor<300xf32>) -> (!xq, !x1)
  return %q#0, %q#1 : !xq, !x1
}

// By scales that are given: the first quantized result finds its own, the second has %s.
// CHECK-LABEL: func.func @given_scales
// CHECK: "qfuse.rms_norm"(%{{.*}}, %{{.*}}, %{{.*}}) {{.*}}operandSegmentSizes = array<i32: 1, 1, 0, 0, 1>
// CHECK: "qfuse.rms_norm"(%{{.*}}, %{{.*}}, %{{.*}}, %{{.*}}) {{.*}}operandSegmentSizes = array<i32: 1, 1, 0, 1, 1>
// CHECK: "qfuse.glu"(%{{.*}}, %{{.*}}) {act = "silu", operandSegmentSizes = array<i32: 1, 0, 1>
// CHECK: "qfuse.with_scale"(%{{.*}}, %{{.*}}) : (f32, f32) -> f32
!xs = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">>
func.func @given_scales(%x: tensor<?x300xbf16>, %y: tensor<?x600xbf16>, %n: tensor<300xf32>, %w: tensor<300x300xbf16>, %s: tensor<1xf32>, %t: tensor<1xf32>) -> (!xs, !xs, !xs, !xs, !xs, !xs) {
  %a:2 = "qfuse.rms_norm"(%x, %n, %s) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 1>, resultSegmentSizes = array<i32: 0, 1, 1, 0>} : (tensor<?x300xbf16>, tensor<300xf32>, tensor<1xf32>) -> (!xs, !xs)
  %b:2 = "qfuse.rms_norm"(%x, %n, %s, %t) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 1, 1>, resultSegmentSizes = array<i32: 0, 1, 1, 0>} : (tensor<?x300xbf16>, tensor<300xf32>, tensor<1xf32>, tensor<1xf32>) -> (!xs, !xs)
  %c = "qfuse.glu"(%y, %s) {act = "silu", operandSegmentSizes = array<i32: 1, 0, 1>, resultSegmentSizes = array<i32: 0, 1>} : (tensor<?x600xbf16>, tensor<1xf32>) -> !xs
  %d = "qfuse.matmul"(%x, %w, %s) ({
  ^bb0(%acc: f32, %p: f32):
    %v = "qfuse.with_scale"(%acc, %p) : (f32, f32) -> f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 300>, maps = ["[]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x300xbf16>, tensor<300x300xbf16>, tensor<1xf32>) -> !xs
  return %a#0, %a#1, %b#0, %b#1, %c, %d : !xs, !xs, !xs, !xs, !xs, !xs
}

// CHECK-LABEL: func.func @rotary
// CHECK: "qfuse.rope"
func.func @rotary(%x: tensor<2x?x8x64xbf16>, %cos: tensor<1x?x64xbf16>, %sin: tensor<2x?x64xbf16>) -> tensor<2x?x8x64xbf16> {
  %y = "qfuse.rope"(%x, %cos, %sin) : (tensor<2x?x8x64xbf16>, tensor<1x?x64xbf16>, tensor<2x?x64xbf16>) -> tensor<2x?x8x64xbf16>
  return %y : tensor<2x?x8x64xbf16>
}

// CHECK-LABEL: func.func @attention
// CHECK: "qfuse.attention"(%{{.*}}) {scale = 1.250000e-01 : f64, window = 0 : i64}
func.func @attention(%q: tensor<1x?x4x64xbf16>, %k: tensor<1x2x?x64xbf16>, %v: tensor<1x2x?x32xbf16>, %p: tensor<?xi64>) -> tensor<1x?x4x32xbf16> {
  %y = "qfuse.attention"(%q, %k, %v, %p) {scale = 0.125 : f64, window = 0 : i64} : (tensor<1x?x4x64xbf16>, tensor<1x2x?x64xbf16>, tensor<1x2x?x32xbf16>, tensor<?xi64>) -> tensor<1x?x4x32xbf16>
  return %y : tensor<1x?x4x32xbf16>
}

// CHECK-LABEL: func.func @elementwise
// CHECK: "qfuse.add"
// CHECK: "qfuse.mul"
// CHECK: "qfuse.silu"
// CHECK: "qfuse.gelu"
// CHECK: "qfuse.gelu_tanh"
// CHECK: "qfuse.relu"
// CHECK: "qfuse.glu"(%{{.*}}, %{{.*}}) {act = "silu"
// CHECK: "qfuse.glu"(%{{.*}}) {act = "gelu"
func.func @elementwise(%x: tensor<?x300xbf16>, %b: tensor<300xf32>) -> (tensor<?x300xbf16>, !qfuse.qtensor<tensor<?x150xf8E4M3FN>, #act>) {
  %0 = "qfuse.add"(%x, %b) : (tensor<?x300xbf16>, tensor<300xf32>) -> tensor<?x300xbf16>
  %1 = "qfuse.mul"(%0, %x) : (tensor<?x300xbf16>, tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %2 = "qfuse.silu"(%1) : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %3 = "qfuse.gelu"(%2) : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %4 = "qfuse.gelu_tanh"(%3) : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %5 = "qfuse.relu"(%4) : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %6 = "qfuse.glu"(%5, %x) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x300xbf16>, tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %7 = "qfuse.glu"(%6) {act = "gelu", operandSegmentSizes = array<i32: 1, 0, 0>, resultSegmentSizes = array<i32: 0, 1>} : (tensor<?x300xbf16>) -> !qfuse.qtensor<tensor<?x150xf8E4M3FN>, #act>
  return %6, %7 : tensor<?x300xbf16>, !qfuse.qtensor<tensor<?x150xf8E4M3FN>, #act>
}

// A missing bound is an infinity.
// CHECK-LABEL: func.func @arithmetic
// CHECK: "qfuse.sub"
// CHECK: "qfuse.div"
// CHECK: "qfuse.sigmoid"
// CHECK: "qfuse.tanh"
// CHECK: "qfuse.exp"
// CHECK: "qfuse.neg"
// CHECK: "qfuse.square"
// CHECK: "qfuse.clamp"(%{{.*}}) {high = 7.000000e+00 : f64, low = 0xFFF0000000000000 : f64}
// CHECK: "qfuse.cast"(%{{.*}}) : (tensor<?x300xbf16>) -> tensor<?x300xf32>
func.func @arithmetic(%x: tensor<?x300xbf16>, %c: tensor<?x1xf32>) -> tensor<?x300xf32> {
  %s = arith.constant dense<0.5> : tensor<f32>
  %0 = "qfuse.sub"(%x, %c) : (tensor<?x300xbf16>, tensor<?x1xf32>) -> tensor<?x300xbf16>
  %1 = "qfuse.div"(%0, %s) : (tensor<?x300xbf16>, tensor<f32>) -> tensor<?x300xbf16>
  %2 = "qfuse.sigmoid"(%1) : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %3 = "qfuse.tanh"(%2) : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %4 = "qfuse.exp"(%3) : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %5 = "qfuse.neg"(%4) : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %6 = "qfuse.square"(%5) : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %7 = "qfuse.clamp"(%6) {low = 0xFFF0000000000000 : f64, high = 7.0 : f64} : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %8 = "qfuse.cast"(%7) : (tensor<?x300xbf16>) -> tensor<?x300xf32>
  return %8 : tensor<?x300xf32>
}

// Two f16 numbers for each block of 32: its scale, and its sum.
// CHECK-LABEL: func.func @q8_1
// CHECK: "qfuse.quantize"{{.*}}"q8_1"
// CHECK: "qfuse.unpack"{{.*}}(tensor<?x256xi8>, tensor<?x16xf16>)
func.func @q8_1(%x: tensor<?x256xbf16>) -> tensor<?x16xf16> {
  %q = "qfuse.quantize"(%x) : (tensor<?x256xbf16>) -> !qfuse.qtensor<tensor<?x256xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
  %codes, %numbers = "qfuse.unpack"(%q) : (!qfuse.qtensor<tensor<?x256xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>) -> (tensor<?x256xi8>, tensor<?x16xf16>)
  return %numbers : tensor<?x16xf16>
}

// Every scheme that a weight or an activation may have, and scales for whole tensors.
// CHECK-LABEL: func.func @schemes
// CHECK: "qfuse.pack"{{.*}}tensor<64x512xi8>, #qfuse.scheme<array<i64: 1, 512>, f32, "none"
// CHECK: "qfuse.pack"{{.*}}tensor<64x512xi4>, #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "none"
// CHECK: "qfuse.pack"{{.*}}tensor<64x4xi8>) -> {{.*}}bf16, "int4", "int"
// CHECK: "qfuse.pack"{{.*}}tensor<64x32xi8>) -> {{.*}}tensor<64x512xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k"
// CHECK: "qfuse.pack"{{.*}}tensor<64x384xi8>, tensor<64x36xi8>) -> {{.*}}tensor<64x512xi6>, #qfuse.scheme<array<i64: 1, 256>, i8, "q6_k"
// CHECK: "qfuse.pack"{{.*}}tensor<64x512xf4E2M1FN>, #qfuse.scheme<array<i64: 1, 32>, f8E8M0FNU, "fp4"
// CHECK: "qfuse.unpack"{{.*}}-> (tensor<64x256xi8>, tensor<64x4xbf16>, tensor<64x4xi8>)
// CHECK: "qfuse.quantize"{{.*}}"q8_1"
// CHECK: %[[SCALE:.+]] = "qfuse.tensor_scale"{{.*}}storage = f8E4M3FN
// CHECK: "qfuse.quantize"(%{{.*}}, %[[SCALE]])
// CHECK: "qfuse.matmul"
func.func @schemes(%a: tensor<64x512xi8>, %sa: tensor<64x1xf32>, %b: tensor<64x256xi8>, %sb: tensor<64x4xbf16>, %zb: tensor<64x4xi8>, %k: tensor<64x32xi8>, %c: tensor<64x384xi8>, %sc: tensor<64x36xi8>, %sm: tensor<64x16xf8E8M0FNU>, %x: tensor<?x512xbf16>) -> tensor<?x64xbf16> {
  %0 = "qfuse.pack"(%a, %sa) : (tensor<64x512xi8>, tensor<64x1xf32>) -> !qfuse.qtensor<tensor<64x512xi8>, #w8>
  %1 = "qfuse.pack"(%b, %sb) : (tensor<64x256xi8>, tensor<64x4xbf16>) -> !qfuse.qtensor<tensor<64x512xi4>, #w4>
  %2 = "qfuse.pack"(%b, %sb, %zb) : (tensor<64x256xi8>, tensor<64x4xbf16>, tensor<64x4xi8>) -> !qfuse.qtensor<tensor<64x512xi4>, #w4z>
  %3 = "qfuse.pack"(%b, %k) : (tensor<64x256xi8>, tensor<64x32xi8>) -> !qfuse.qtensor<tensor<64x512xi4>, #q4k>
  %4 = "qfuse.pack"(%c, %sc) : (tensor<64x384xi8>, tensor<64x36xi8>) -> !qfuse.qtensor<tensor<64x512xi6>, #q6k>
  %5 = "qfuse.pack"(%b, %sm) : (tensor<64x256xi8>, tensor<64x16xf8E8M0FNU>) -> !qfuse.qtensor<tensor<64x512xf4E2M1FN>, #mx>
  %6:3 = "qfuse.unpack"(%2) : (!qfuse.qtensor<tensor<64x512xi4>, #w4z>) -> (tensor<64x256xi8>, tensor<64x4xbf16>, tensor<64x4xi8>)
  %7 = "qfuse.quantize"(%x) : (tensor<?x512xbf16>) -> !qfuse.qtensor<tensor<?x512xi8>, #q8_1>
  %s = "qfuse.tensor_scale"(%x) {storage = f8E4M3FN} : (tensor<?x512xbf16>) -> tensor<1xf32>
  %8 = "qfuse.quantize"(%x, %s) : (tensor<?x512xbf16>, tensor<1xf32>) -> !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #w8>
  %y = "qfuse.matmul"(%7, %3) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 64>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x512xi8>, #q8_1>, !qfuse.qtensor<tensor<64x512xi4>, #q4k>) -> tensor<?x64xbf16>
  return %y : tensor<?x64xbf16>
}

// A library's product, the epilogue that it leaves, and the choice by the number of rows.
// CHECK-LABEL: func.func @library
// CHECK: "qfuse.choose"(%{{.*}}) ({
// CHECK: "qfuse.library_call"{{.*}}call = "mm"
// CHECK: "qfuse.epilogue"
// CHECK: starts = array<i64: 0, 96>
// CHECK: "qfuse.result"
// CHECK: }, {
// CHECK: "qfuse.result"
// CHECK: ranges = array<i64: 2, 64, 257, -1>
func.func @library(%x: tensor<?x512xbf16>, %w: tensor<192x512xbf16>, %z: tensor<?x96xbf16>) -> tensor<?x96xbf16> {
  %y = "qfuse.choose"(%x) ({
    %0 = "qfuse.library_call"(%x, %w) {call = "mm", activation = "none", operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<?x512xbf16>, tensor<192x512xbf16>) -> tensor<?x192xbf16>
    %1 = "qfuse.epilogue"(%0) ({
    ^bb0(%gate: f32, %up: f32):
      %2 = arith.mulf %gate, %up : f32
      "qfuse.yield"(%2) : (f32) -> ()
    }) {parts = array<i64: 96, 96>, starts = array<i64: 0, 96>, maps = [], operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x192xbf16>) -> tensor<?x96xbf16>
    "qfuse.result"(%1) : (tensor<?x96xbf16>) -> ()
  }, {
    "qfuse.result"(%z) : (tensor<?x96xbf16>) -> ()
  }) {call = "mm", ranges = array<i64: 2, 64, 257, -1>} : (tensor<?x512xbf16>) -> tensor<?x96xbf16>
  return %y : tensor<?x96xbf16>
}

// GLUs that clamp gate and up first, gpt-oss's with its own alpha or the usual one, and one that says what is the default.
// CHECK-LABEL: func.func @clamped_glus
// CHECK: "qfuse.glu"(%{{.*}}, %{{.*}}) {act = "silu", limit = 1.000000e+01 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes
// CHECK: "qfuse.glu"(%{{.*}}, %{{.*}}) {act = "swiglu_oai", limit = 7.000000e+00 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes
// CHECK: "qfuse.glu"(%{{.*}}) {act = "swiglu_oai", alpha = 1.500000e+00 : f64, operandSegmentSizes = array<i32: 1, 0, 0>, resultSegmentSizes
// CHECK: "qfuse.glu"(%{{.*}}, %{{.*}}) {act = "relu", alpha = 1.702000e+00 : f64, limit = 0x7FF0000000000000 : f64
func.func @clamped_glus(%x: tensor<?x300xbf16>) -> tensor<?x300xbf16> {
  %0 = "qfuse.glu"(%x, %x) {act = "silu", limit = 10.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x300xbf16>, tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %1 = "qfuse.glu"(%0, %x) {act = "swiglu_oai", limit = 7.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x300xbf16>, tensor<?x300xbf16>) -> tensor<?x300xbf16>
  %2 = "qfuse.glu"(%1) {act = "swiglu_oai", alpha = 1.5 : f64, operandSegmentSizes = array<i32: 1, 0, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x300xbf16>) -> tensor<?x150xbf16>
  %3 = "qfuse.glu"(%1, %x) {act = "relu", alpha = 1.702 : f64, limit = 0x7FF0000000000000 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x300xbf16>, tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return %3 : tensor<?x300xbf16>
}
