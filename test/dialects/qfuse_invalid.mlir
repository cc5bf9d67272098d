// RUN: qfuse-opt --split-input-file --verify-diagnostics %s

// What each verifier refuses, with its message.

// Scales: one per block, the last one partial: 2 x 3 here, not 1 x 2.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%d: tensor<130x300xf8E4M3FN>, %s: tensor<1x2xf32>) {
  // expected-error @+1 {{scale shape [1, 2] does not fit: blocks of [128, 128] over [130, 300] need [2, 3]}}
  %w = "qfuse.pack"(%d, %s) : (tensor<130x300xf8E4M3FN>, tensor<1x2xf32>) -> !wq
  return
}

// -----

// The storage type of the components is the type's.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%d: tensor<130x300xf8E5M2>, %s: tensor<2x3xf32>) {
  // expected-error @+1 {{data is f8E5M2 but the type stores f8E4M3FN}}
  %w = "qfuse.pack"(%d, %s) : (tensor<130x300xf8E5M2>, tensor<2x3xf32>) -> !wq
  return
}

// -----

// The scale type of the components is the scheme's.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%d: tensor<130x300xf8E4M3FN>, %s: tensor<2x3xf16>) {
  // expected-error @+1 {{scale is f16 but the scheme says f32}}
  %w = "qfuse.pack"(%d, %s) : (tensor<130x300xf8E4M3FN>, tensor<2x3xf16>) -> !wq
  return
}

// -----

// The shape of the components is the type's.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%d: tensor<128x300xf8E4M3FN>, %s: tensor<1x3xf32>) {
  // expected-error @+1 {{data shape [128, 300] differs from the type's [130, 300]}}
  %w = "qfuse.pack"(%d, %s) : (tensor<128x300xf8E4M3FN>, tensor<1x3xf32>) -> !wq
  return
}

// -----

// FP8 codes carry f32 or e8m0 scales.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{scale type f16 does not go with f8E4M3FN; use one of f32, f8E8M0FNU}}
  %q = "qfuse.quantize"(%x) : (tensor<?x300xbf16>) -> !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f16, "none", "none", "row_major">>
  return
}

// -----

// A storage type that no format has.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{storage type i16 is not one of f8E4M3FN, f8E5M2, i8, i6, i4, f4E2M1FN}}
  %q = "qfuse.quantize"(%x) : (tensor<?x300xbf16>) -> !qfuse.qtensor<tensor<?x300xi16>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
  return
}

// -----

// A packing that does not exist.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{packing "q9" is not one of none, int4, fp4, q4_k, q6_k, q8_1}}
  %q = "qfuse.quantize"(%x) : (tensor<?x300xbf16>) -> !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "q9", "none", "row_major">>
  return
}

// -----

// A scale layout that does not exist.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{scale_layout "tiled" is not one of row_major, col_major}}
  %q = "qfuse.quantize"(%x) : (tensor<?x300xbf16>) -> !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "tiled">>
  return
}

// -----

// A block of no elements.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{block [1, 0] is not two positive extents}}
  %q = "qfuse.quantize"(%x) : (tensor<?x300xbf16>) -> !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 0>, f32, "none", "none", "row_major">>
  return
}

// -----

// A block with one extent.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{block [128] is not two positive extents}}
  %q = "qfuse.quantize"(%x) : (tensor<?x300xbf16>) -> !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128>, f32, "none", "none", "row_major">>
  return
}

// -----

// A vector has no rows to scale.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<300xbf16>) {
  // expected-error @+1 {{a quantized tensor has at least two dimensions}}
  %q = "qfuse.quantize"(%x) : (tensor<300xbf16>) -> !qfuse.qtensor<tensor<300xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
  return
}

// -----

// Blocks over several tokens need all tokens at once.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{dynamic quantization blocks are [1, group], not [128, 128]}}
  %q = "qfuse.quantize"(%x) : (tensor<?x300xbf16>) -> !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
  return
}

// -----

// 4-bit codes are packed ahead of time.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{cannot quantize dynamically to i4; use one of f8E4M3FN, f8E5M2, i8}}
  %q = "qfuse.quantize"(%x) : (tensor<?x300xbf16>) -> !qfuse.qtensor<tensor<?x300xi4>, #qfuse.scheme<array<i64: 1, 128>, f32, "int4", "none", "row_major">>
  return
}

// -----

// Quantization keeps the shape.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{result shape [?, 301] differs from the input's [?, 300]}}
  %q = "qfuse.quantize"(%x) : (tensor<?x300xbf16>) -> !qfuse.qtensor<tensor<?x301xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
  return
}

// -----

// Only floats are quantized.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xi32>) {
  // expected-error @+1 {{input element type i32 is not f32, f16 or bf16}}
  %q = "qfuse.quantize"(%x) : (tensor<?x300xi32>) -> !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
  return
}

// -----

// The group count must be known.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<4x?xbf16>) {
  // expected-error @+1 {{the quantized dimension must be static}}
  %q = "qfuse.quantize"(%x) : (tensor<4x?xbf16>) -> !qfuse.qtensor<tensor<4x?xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
  return
}

// -----

// Zero points are for weights.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{packing "none" has no zero points; "int4" has}}
  %q = "qfuse.quantize"(%x) : (tensor<?x300xbf16>) -> !qfuse.qtensor<tensor<?x300xi8>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "int", "row_major">>
  return
}

// -----

// Dequantization keeps the shape.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%q: !xq) {
  // expected-error @+1 {{result shape [?, 200] differs from the input's [?, 300]}}
  %y = "qfuse.dequantize"(%q) : (!xq) -> tensor<?x200xbf16>
  return
}

// -----

// Dequantization makes floats.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%q: !xq) {
  // expected-error @+1 {{result element type i8 is not f32, f16 or bf16}}
  %y = "qfuse.dequantize"(%q) : (!xq) -> tensor<?x300xi8>
  return
}

// -----

// Weights are joined over one K.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%a: !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>, %b: !qfuse.qtensor<tensor<130x301xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) {
  // expected-error @+1 {{K differs: 300 and 301}}
  %w = "qfuse.concat"(%a, %b) {operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (!qfuse.qtensor<tensor<130x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<130x301xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> !qfuse.qtensor<tensor<386x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
  return
}

// -----

// Weights of two schemes cannot be one.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%a: !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>, %b: !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #qfuse.scheme<array<i64: 64, 96>, f32, "none", "none", "row_major">>) {
  // expected-error @+1 {{element type or scheme differs}}
  %w = "qfuse.concat"(%a, %b) {operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (!qfuse.qtensor<tensor<130x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #qfuse.scheme<array<i64: 64, 96>, f32, "none", "none", "row_major">>) -> !qfuse.qtensor<tensor<386x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
  return
}

// -----

// The second part begins at row 256, a block boundary.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%a: !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>, %b: !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) {
  // expected-error @+1 {{result type should be !qfuse.qtensor<tensor<386x300xf8E4M3FN>}}
  %w = "qfuse.concat"(%a, %b) {operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (!qfuse.qtensor<tensor<130x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> !qfuse.qtensor<tensor<260x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
  return
}

// -----

// Plain products: x and w agree in K.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !qfuse.qtensor<tensor<130x301xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) {
  // expected-error @+1 {{K differs: x has [?, 300], w has [130, 301]}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !qfuse.qtensor<tensor<130x301xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x130xbf16>
  return
}

// -----

// The runs of K over which x and w are scaled fit into each other.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #qfuse.scheme<array<i64: 64, 96>, f32, "none", "none", "row_major">>) {
  // expected-error @+1 {{x is scaled per 128 and w per 96 elements of K; one must divide the other}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #qfuse.scheme<array<i64: 64, 96>, f32, "none", "none", "row_major">>) -> tensor<?x130xbf16>
  return
}

// -----

// Codes without a scale are no product operand.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xi8>, %w: !wq) {
  // expected-error @+1 {{x has element type i8; plain operands are f32, f16 or bf16}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x300xi8>, !wq) -> tensor<?x130xbf16>
  return
}

// -----

// A weight has two static extents.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) {
  // expected-error @+1 {{w has shape [?, 300]; a weight is a static [N, K]}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x130xbf16>
  return
}

// -----

// x has rows.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<300xbf16>, %w: !wq) {
  // expected-error @+1 {{x has shape [300]; it needs at least [M, K]}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<300xbf16>, !wq) -> tensor<130xbf16>
  return
}

// -----

// The parts add up to w, each from a block boundary on.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq) {
  // expected-error @+1 {{parts [65, 65] make 193 rows, but w has 130; each part begins at a multiple of the scale block}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32, %p1: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 65, 65>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> tensor<?x65xbf16>
  return
}

// -----

// A part has rows.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq) {
  // expected-error @+1 {{parts [0] must be positive row counts}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 0>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> tensor<?x130xbf16>
  return
}

// -----

// Every extra operand has a map.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq, %e0: tensor<130xbf16>) {
  // expected-error @+1 {{has 1 extra operands but 0 maps}}
  %y = "qfuse.matmul"(%x, %w, %e0) ({
  ^bb0(%p0: f32, %a0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq, tensor<130xbf16>) -> tensor<?x130xbf16>
  return
}

// -----

// A map that does not exist.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq, %e0: tensor<130xbf16>) {
  // expected-error @+1 {{map "[K]" is not one of [N], [M,1], [M,N], []}}
  %y = "qfuse.matmul"(%x, %w, %e0) ({
  ^bb0(%p0: f32, %a0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = ["[K]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq, tensor<130xbf16>) -> tensor<?x130xbf16>
  return
}

// -----

// A bias of one element is no [N] operand (the peers read past its end).
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq, %e0: tensor<1xbf16>) {
  // expected-error @+1 {{extra operand 0 has shape [1], which does not fit its map "[N]" over [130]}}
  %y = "qfuse.matmul"(%x, %w, %e0) ({
  ^bb0(%p0: f32, %a0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq, tensor<1xbf16>) -> tensor<?x130xbf16>
  return
}

// -----

// A [N] operand is no residual.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq, %e0: tensor<130xbf16>) {
  // expected-error @+1 {{extra operand 0 has shape [130], which does not fit its map "[M,N]" over [?, 130]}}
  %y = "qfuse.matmul"(%x, %w, %e0) ({
  ^bb0(%p0: f32, %a0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = ["[M,N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq, tensor<130xbf16>) -> tensor<?x130xbf16>
  return
}

// -----

// Extra operands are plain.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq, %e0: tensor<130xi8>) {
  // expected-error @+1 {{extra operand 0 is tensor<130xi8>; it must be a plain float tensor}}
  %y = "qfuse.matmul"(%x, %w, %e0) ({
  ^bb0(%p0: f32, %a0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq, tensor<130xi8>) -> tensor<?x130xbf16>
  return
}

// -----

// The result is as wide as a part.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq) {
  // expected-error @+1 {{result 0 is 128 wide, but the parts of w are [130]}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> tensor<?x128xbf16>
  return
}

// -----

// The result has the rows of x.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<8x300xbf16>, %w: !wq) {
  // expected-error @+1 {{result 0 has shape [4, 130], but the rows of x are [8]}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<8x300xbf16>, !wq) -> tensor<4x130xbf16>
  return
}

// -----

// The result is a float or a qtensor.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq) {
  // expected-error @+1 {{result 0 has element type i32; use f32, f16, bf16 or a qtensor}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> tensor<?x130xi32>
  return
}

// -----

// A quantized result is quantized dynamically.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq) {
  // expected-error @+1 {{result 0: dynamic quantization blocks are [1, group], not [128, 128]}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> !qfuse.qtensor<tensor<?x130xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>
  return
}

// -----

// One argument for each accumulator and extra operand.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq) {
  // expected-error @+1 {{epilogue arguments are (f32, f32); expected (f32): one f32 for each of 1 parts of w and 0 extra operands}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32, %p1: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> tensor<?x130xbf16>
  return
}

// -----

// The epilogue computes in f32.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq) {
  // expected-error @+1 {{epilogue arguments are (bf16); expected (f32)}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: bf16):
    %0 = arith.extf %p0 : bf16 to f32
    "qfuse.yield"(%0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> tensor<?x130xbf16>
  return
}

// -----

// One yielded value for each result.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq) {
  // expected-error @+1 {{yields 2 values for 1 results}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    "qfuse.yield"(%p0, %p0) : (f32, f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> tensor<?x130xbf16>
  return
}

// -----

// Only scalar arithmetic in the epilogue.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq) {
  // expected-error @+1 {{'tensor.empty' may not stand in an epilogue; use arith and math}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    %0 = tensor.empty() : tensor<4xf32>
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> tensor<?x130xbf16>
  return
}

// -----

// Results of unequal parts do not mix them.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x8xbf16>, %w: tensor<16x8xbf16>) {
  // expected-error @+1 {{result 0 is 12 wide but depends on accumulator 1, which is 4 wide}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32, %p1: f32):
    %0 = arith.addf %p0, %p1 : f32
    "qfuse.yield"(%0) : (f32) -> ()
  }) {parts = array<i64: 12, 4>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x8xbf16>, tensor<16x8xbf16>) -> tensor<?x12xbf16>
  return
}

// -----

// The segment attribute says which operands are there.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq) {
  // expected-error @+1 {{needs the attribute operandSegmentSizes}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> tensor<?x130xbf16>
  return
}

// -----

// A missing attribute is named.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: !xq, %w: !wq) {
  // expected-error @+1 {{needs the attribute maps}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%p0: f32):
    "qfuse.yield"(%p0) : (f32) -> ()
  }) {parts = array<i64: 130>, operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> tensor<?x130xbf16>
  return
}

// -----

// The weight covers the normalized dimension.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>, %w: tensor<299xbf16>) {
  // expected-error @+1 {{weight is tensor<299xbf16>; expected 300 values of f32, f16 or bf16}}
  %y = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x300xbf16>, tensor<299xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// The residual is like x.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>, %w: tensor<300xbf16>, %r: tensor<?x300xf32>) {
  // expected-error @+1 {{residual is tensor<?x300xf32> but x is tensor<?x300xbf16>}}
  %y = "qfuse.rms_norm"(%x, %w, %r) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 1, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x300xbf16>, tensor<300xbf16>, tensor<?x300xf32>) -> tensor<?x300xbf16>
  return
}

// -----

// Two roundings exist.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>, %w: tensor<300xbf16>) {
  // expected-error @+1 {{rounding "never" is not one of before, after}}
  %y = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "never", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x300xbf16>, tensor<300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// So do two of what is quantized.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xi = !qfuse.qtensor<tensor<?x300xi8>, #act>
!xc = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>
func.func @case(%x: tensor<?x300xbf16>, %w: tensor<300xbf16>) {
  // expected-error @+1 {{quantize_rounding "bf16" is not one of value, f32}}
  %0 = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", quantize_rounding = "bf16", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 0, 1, 0, 0>} : (tensor<?x300xbf16>, tensor<300xbf16>) -> (!xq)
  return
}

// -----

// A misspelt attribute would be none.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xi = !qfuse.qtensor<tensor<?x300xi8>, #act>
!xc = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>
func.func @case(%x: tensor<?x300xbf16>, %w: tensor<300xbf16>) {
  // expected-error @+1 {{attribute quantise_rounding is not one of eps, offset, rounding, quantize_rounding}}
  %0 = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", quantise_rounding = "f32", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 0, 1, 0, 0>} : (tensor<?x300xbf16>, tensor<300xbf16>) -> (!xq)
  return
}

// -----

// A single format has its place.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xi = !qfuse.qtensor<tensor<?x300xi8>, #act>
!xc = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>
func.func @case(%x: tensor<?x300xbf16>, %w: tensor<300xbf16>) {
  // expected-error @+1 {{has a result quantized2 but no quantized; a single one is quantized}}
  %0 = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 0, 0, 1, 0>} : (tensor<?x300xbf16>, tensor<300xbf16>) -> (!xq)
  return
}

// -----

// Two formats differ.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xi = !qfuse.qtensor<tensor<?x300xi8>, #act>
!xc = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>
func.func @case(%x: tensor<?x300xbf16>, %w: tensor<300xbf16>) {
  // expected-error @+1 {{quantizes twice to !qfuse.qtensor<tensor<?x300xf8E4M3FN>}}
  %0, %1 = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 0, 1, 1, 0>} : (tensor<?x300xbf16>, tensor<300xbf16>) -> (!xq, !xq)
  return
}

// -----

// The layout of scales makes no other format.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xi = !qfuse.qtensor<tensor<?x300xi8>, #act>
!xc = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>
func.func @case(%x: tensor<?x300xbf16>, %w: tensor<300xbf16>) {
  // expected-error @+1 {{quantizes twice to !qfuse.qtensor<tensor<?x300xf8E4M3FN>}}
  %0, %1 = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 0, 1, 1, 0>} : (tensor<?x300xbf16>, tensor<300xbf16>) -> (!xc, !xq)
  return
}

// -----

// Two formats have one order.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xi = !qfuse.qtensor<tensor<?x300xi8>, #act>
!xc = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>
func.func @case(%x: tensor<?x300xbf16>, %w: tensor<300xbf16>) {
  // expected-error @+1 {{quantized results stand in the order of their formats' text: !qfuse.qtensor<tensor<?x300xf8E4M3FN>}}
  %0, %1 = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 0, 1, 1, 0>} : (tensor<?x300xbf16>, tensor<300xbf16>) -> (!xi, !xq)
  return
}

// -----

// The value follows x.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>, %w: tensor<300xbf16>) {
  // expected-error @+1 {{result value is f32; it follows the input, bf16}}
  %y = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x300xbf16>, tensor<300xbf16>) -> tensor<?x300xf32>
  return
}

// -----

// The value has the shape of x.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>, %w: tensor<300xbf16>) {
  // expected-error @+1 {{result value has shape [?, 299], not [?, 300]}}
  %y = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x300xbf16>, tensor<300xbf16>) -> tensor<?x299xbf16>
  return
}

// -----

// The normalized dimension is known.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<4x?xbf16>, %w: tensor<?xbf16>) {
  // expected-error @+1 {{the normalized dimension must be static}}
  %y = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<4x?xbf16>, tensor<?xbf16>) -> tensor<4x?xbf16>
  return
}

// -----

// Halves need an even width.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<1x?x8x63xbf16>, %c: tensor<1x?x64xbf16>) {
  // expected-error @+1 {{x is tensor<1x?x8x63xbf16>; expected floats [B, T, H, D] with D even}}
  %y = "qfuse.rope"(%x, %c, %c) : (tensor<1x?x8x63xbf16>, tensor<1x?x64xbf16>, tensor<1x?x64xbf16>) -> tensor<1x?x8x63xbf16>
  return
}

// -----

// cos and sin have one row per token.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<1x?x8x64xbf16>, %c: tensor<1x?x32xbf16>) {
  // expected-error @+1 {{cos has shape [1, ?, 32]; expected [1, ?, 64]}}
  %y = "qfuse.rope"(%x, %c, %c) : (tensor<1x?x8x64xbf16>, tensor<1x?x32xbf16>, tensor<1x?x32xbf16>) -> tensor<1x?x8x64xbf16>
  return
}

// -----

// cos and sin have the type of x.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<1x?x8x64xbf16>, %c: tensor<1x?x64xf32>) {
  // expected-error @+1 {{cos is f32 but x is bf16}}
  %y = "qfuse.rope"(%x, %c, %c) : (tensor<1x?x8x64xbf16>, tensor<1x?x64xf32>, tensor<1x?x64xf32>) -> tensor<1x?x8x64xbf16>
  return
}

// -----

// The result is like x.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<1x?x8x64xbf16>, %c: tensor<1x?x64xbf16>) {
  // expected-error @+1 {{result is tensor<1x?x8x64xf32>; it follows x}}
  %y = "qfuse.rope"(%x, %c, %c) : (tensor<1x?x8x64xbf16>, tensor<1x?x64xbf16>, tensor<1x?x64xbf16>) -> tensor<1x?x8x64xf32>
  return
}

// -----

// Shapes broadcast or they do not.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>, %b: tensor<299xbf16>) {
  // expected-error @+1 {{[?, 300] and [299] do not broadcast}}
  %y = "qfuse.add"(%x, %b) : (tensor<?x300xbf16>, tensor<299xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// The result has the broadcast shape.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>, %b: tensor<300xbf16>) {
  // expected-error @+1 {{result shape [300] should be [?, 300]}}
  %y = "qfuse.mul"(%x, %b) : (tensor<?x300xbf16>, tensor<300xbf16>) -> tensor<300xbf16>
  return
}

// -----

// Element-wise operations take floats.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xi32>) {
  // expected-error @+1 {{element type i32 is not f32, f16 or bf16}}
  %y = "qfuse.silu"(%x) : (tensor<?x300xi32>) -> tensor<?x300xi32>
  return
}

// -----

// An activation that does not exist.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{act "swoosh" is not one of silu, gelu, gelu_tanh, relu, swiglu_oai}}
  %y = "qfuse.glu"(%x, %x) {act = "swoosh", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x300xbf16>, tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// gate and up are alike.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x300xbf16>, %u: tensor<?x300xf32>) {
  // expected-error @+1 {{gate is tensor<?x300xbf16> but up is tensor<?x300xf32>}}
  %y = "qfuse.glu"(%x, %u) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x300xbf16>, tensor<?x300xf32>) -> tensor<?x300xbf16>
  return
}

// -----

// Halves need an even width.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!wq = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
func.func @case(%x: tensor<?x301xbf16>) {
  // expected-error @+1 {{cannot halve a width of 301}}
  %y = "qfuse.glu"(%x) {act = "silu", operandSegmentSizes = array<i32: 1, 0, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x301xbf16>) -> tensor<?x150xbf16>
  return
}

// -----

// A product takes tensors and qtensors.
func.func @case(%x: tensor<4x4xf32>, %i: i32) {
  // expected-error @+1 {{i32 is neither a ranked tensor nor a qtensor}}
  %y = "qfuse.matmul"(%x, %x, %i) ({
  ^bb0(%acc: f32, %e: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4>, maps = ["[]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<4x4xf32>, tensor<4x4xf32>, i32) -> tensor<4x4xf32>
  return
}

// -----

// An unranked tensor has no shape to check.
func.func @case(%x: tensor<*xf32>) {
  // expected-error @+1 {{tensor<*xf32> is neither a ranked tensor nor a qtensor}}
  %y = "qfuse.silu"(%x) : (tensor<*xf32>) -> tensor<*xf32>
  return
}

// -----

// The data of a qtensor is a tensor.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
func.func @case(%x: tensor<4x4xf32>) {
  // expected-error @+1 {{the data of a qtensor is a ranked tensor, not f32}}
  %q = "qfuse.quantize"(%x) : (tensor<4x4xf32>) -> !qfuse.qtensor<f32, #act>
  return
}

// -----

// The block of a scheme is a list of extents.
func.func @case(%x: tensor<4x4xf32>) {
  // expected-error @+1 {{the block of a scheme is an array<i64: rows, columns>, not "row"}}
  %q = "qfuse.quantize"(%x) : (tensor<4x4xf32>) -> !qfuse.qtensor<tensor<4x4xf8E4M3FN>, #qfuse.scheme<"row", f32, "none", "none", "row_major">>
  return
}

// -----

// A joined weight has a legal scheme.
!w = !qfuse.qtensor<tensor<4x4xf8E4M3FN>, #qfuse.scheme<array<i64>, f32, "none", "none", "row_major">>
func.func @case(%w: !w) {
  // expected-error @+1 {{block [] is not two positive extents}}
  %q = "qfuse.concat"(%w, %w) {operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (!w, !w) -> !w
  return
}

// -----

// parts has one form.
func.func @case(%x: tensor<4x4xf32>) {
  // expected-error @+1 {{attribute parts is [4]; expected array<i64>}}
  %y = "qfuse.matmul"(%x, %x) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = [4], maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
  return
}

// -----

// maps are strings.
func.func @case(%x: tensor<4x4xf32>) {
  // expected-error @+1 {{attribute maps is [0]; expected strings}}
  %y = "qfuse.matmul"(%x, %x, %x) ({
  ^bb0(%acc: f32, %e: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4>, maps = [0], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<4x4xf32>, tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
  return
}

// -----

// A scalar has no column for a map to name, not even where there is one column only.
func.func @case(%x: tensor<4x4xf32>, %w: tensor<1x4xf32>, %s: tensor<f32>) {
  // expected-error @+1 {{extra operand 0 has shape [], which does not fit its map "[N]"}}
  %y = "qfuse.matmul"(%x, %w, %s) ({
  ^bb0(%acc: f32, %e: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<4x4xf32>, tensor<1x4xf32>, tensor<f32>) -> tensor<4x1xf32>
  return
}

// -----

// A product has an epilogue.
func.func @case(%x: tensor<4x4xf32>) {
  // expected-error @+1 {{has 0 regions; expected 1}}
  %y = "qfuse.matmul"(%x, %x) {parts = array<i64: 4>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
  return
}

// -----

// The segment attribute counts every result.
func.func @case(%x: tensor<4x4xf32>, %w: tensor<4xf32>) {
  // expected-error @+1 {{resultSegmentSizes is array<i32: 1>; expected 0 or 1, as i32, for each of value, quantized, quantized2, new_residual, 1 in all}}
  %y = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1>} : (tensor<4x4xf32>, tensor<4xf32>) -> tensor<4x4xf32>
  return
}

// -----

// There is one of each.
func.func @case(%x: tensor<4x4xf32>, %w: tensor<4xf32>) {
  // expected-error @+1 {{resultSegmentSizes is array<i32: 2, -1, 0, 0>}}
  %y = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 2, -1, 0, 0>} : (tensor<4x4xf32>, tensor<4xf32>) -> tensor<4x4xf32>
  return
}

// -----

// Operands are counted.
func.func @case(%x: tensor<4x4xf32>) {
  // expected-error @+1 {{has 0 operands, not 2}}
  %y = "qfuse.pack"() : () -> tensor<4x4xf32>
  return
}

// -----

// Attributes have their type.
func.func @case(%x: tensor<4x4xf32>) {
  // expected-error @+1 {{attribute act is unit; expected a StringAttr}}
  %y = "qfuse.glu"(%x) {act, operandSegmentSizes = array<i32: 1, 0, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<4x4xf32>) -> tensor<4x2xf32>
  return
}

// -----

// A scalar has no halves.
func.func @case(%x: tensor<f32>) {
  // expected-error @+1 {{gate is tensor<f32>; it has no last dimension}}
  %y = "qfuse.glu"(%x) {act = "silu", operandSegmentSizes = array<i32: 1, 0, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<f32>) -> tensor<f32>
  return
}

// -----

// A scalar has no last dimension to normalize.
func.func @case(%x: tensor<f32>, %w: tensor<1xf32>) {
  // expected-error @+1 {{the normalized dimension must be static}}
  %y = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<f32>, tensor<1xf32>) -> tensor<f32>
  return
}

// -----

// Sums beside the scales belong to one format.
#odd = #qfuse.scheme<array<i64: 1, 64>, f16, "q8_1", "none", "row_major">
!odd = !qfuse.qtensor<tensor<?x256xi8>, #odd>
func.func @case(%x: tensor<?x256xbf16>) {
  // expected-error @+1 {{packing "q8_1" has blocks of [1, 32], not [1, 64]}}
  %q = "qfuse.quantize"(%x) : (tensor<?x256xbf16>) -> !odd
  return
}

// -----

// No other packing is made at run time.
#packed = #qfuse.scheme<array<i64: 1, 32>, f16, "int4", "none", "row_major">
!packed = !qfuse.qtensor<tensor<?x256xi4>, #packed>
func.func @case(%x: tensor<?x256xbf16>) {
  // expected-error @+1 {{cannot quantize dynamically to i4; use one of f8E4M3FN, f8E5M2, i8}}
  %q = "qfuse.quantize"(%x) : (tensor<?x256xbf16>) -> !packed
  return
}

// -----

// A packing stores certain elements.
#s = #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "none", "row_major">
!q = !qfuse.qtensor<tensor<64x512xi8>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x4xi8>) {
  // expected-error @+1 {{packing "int4" does not store i8; use none or q8_1}}
  %q = "qfuse.pack"(%d, %s) : (tensor<64x256xi8>, tensor<64x4xbf16>) -> !q
  return
}

// -----

// Elements of fewer than eight bits are packed somehow.
#s = #qfuse.scheme<array<i64: 1, 128>, bf16, "none", "none", "row_major">
!q = !qfuse.qtensor<tensor<64x512xi4>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x4xi8>) {
  // expected-error @+1 {{packing "none" does not store i4; use int4 or q4_k}}
  %q = "qfuse.pack"(%d, %s) : (tensor<64x256xi8>, tensor<64x4xbf16>) -> !q
  return
}

// -----

// Two codes a byte: 512 columns are 256 bytes.
#s = #qfuse.scheme<array<i64: 1, 256>, bf16, "int4", "none", "row_major">
!q = !qfuse.qtensor<tensor<64x1024xi4>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x4xi8>) {
  // expected-error @+1 {{data shape [64, 256] differs from the type's [64, 512]}}
  %q = "qfuse.pack"(%d, %s) : (tensor<64x256xi8>, tensor<64x4xbf16>) -> !q
  return
}

// -----

// A byte has no half.
#s = #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "none", "row_major">
!q = !qfuse.qtensor<tensor<64x511xi4>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x4xi8>) {
  // expected-error @+1 {{two elements share a byte, so columns must be even, not 511}}
  %q = "qfuse.pack"(%d, %s) : (tensor<64x256xi8>, tensor<64x4xbf16>) -> !q
  return
}

// -----

// Zero points that the scheme announces must be there.
#s = #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "int", "row_major">
!q = !qfuse.qtensor<tensor<64x512xi4>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x4xi8>) {
  // expected-error @+1 {{zero points are "int", but there are 0 tensors}}
  %q = "qfuse.pack"(%d, %s) : (tensor<64x256xi8>, tensor<64x4xbf16>) -> !q
  return
}

// -----

// Zero points that the scheme does not have must not be there.
#s = #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "none", "row_major">
!q = !qfuse.qtensor<tensor<64x512xi4>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x4xi8>) {
  // expected-error @+1 {{zero points are "none", but there are 1 tensors}}
  %q = "qfuse.pack"(%d, %s, %z) : (tensor<64x256xi8>, tensor<64x4xbf16>, tensor<64x4xi8>) -> !q
  return
}

// -----

// There is a zero point for each scale.
#s = #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "int", "row_major">
!q = !qfuse.qtensor<tensor<64x512xi4>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x3xi8>) {
  // expected-error @+1 {{zero points are tensor<64x3xi8>; expected tensor<64x4xi8>}}
  %q = "qfuse.pack"(%d, %s, %z) : (tensor<64x256xi8>, tensor<64x4xbf16>, tensor<64x3xi8>) -> !q
  return
}

// -----

// Only int4 has zero points.
#s = #qfuse.scheme<array<i64: 1, 128>, bf16, "none", "int", "row_major">
!q = !qfuse.qtensor<tensor<64x256xi8>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x4xi8>) {
  // expected-error @+1 {{packing "none" has no zero points; "int4" has}}
  %q = "qfuse.pack"(%d, %s) : (tensor<64x256xi8>, tensor<64x4xbf16>) -> !q
  return
}

// -----

// Codes below eight bits are bytes at the border.
#s = #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "none", "row_major">
!q = !qfuse.qtensor<tensor<64x512xi4>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x4xi8>) {
  // expected-error @+1 {{data is bf16 but i4 elements lie in bytes, i8}}
  %q = "qfuse.pack"(%s, %s) : (tensor<64x4xbf16>, tensor<64x4xbf16>) -> !q
  return
}

// -----

// K-quants come in super-blocks.
#s = #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">
!q = !qfuse.qtensor<tensor<64x544xi4>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x4xi8>) {
  // expected-error @+1 {{packing "q4_k" needs a multiple of 256 columns, not 544}}
  %q = "qfuse.pack"(%d, %z) : (tensor<64x256xi8>, tensor<64x4xi8>) -> !q
  return
}

// -----

// The scales of a K-quant are 16 bytes for each super-block.
#s = #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">
!q = !qfuse.qtensor<tensor<64x512xi4>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x4xi8>) {
  // expected-error @+1 {{scale shape [64, 4] does not fit: blocks of [1, 256] over [64, 512] need [64, 32]}}
  %q = "qfuse.pack"(%d, %z) : (tensor<64x256xi8>, tensor<64x4xi8>) -> !q
  return
}

// -----

// Six bits take three quarters of a byte.
#s = #qfuse.scheme<array<i64: 1, 256>, i8, "q6_k", "none", "row_major">
!q = !qfuse.qtensor<tensor<64x512xi6>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x4xi8>) {
  // expected-error @+1 {{data shape [64, 256] differs from the type's [64, 384]}}
  %q = "qfuse.pack"(%d, %z) : (tensor<64x256xi8>, tensor<64x4xi8>) -> !q
  return
}

// -----

// The scales of K-quants are bytes of their own.
#s = #qfuse.scheme<array<i64: 1, 256>, f16, "q4_k", "none", "row_major">
!q = !qfuse.qtensor<tensor<64x512xi4>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x4xi8>) {
  // expected-error @+1 {{packing "q4_k" has scales of i8, not f16}}
  %q = "qfuse.pack"(%d, %s) : (tensor<64x256xi8>, tensor<64x4xbf16>) -> !q
  return
}

// -----

// MXFP4 has blocks of 32.
#s = #qfuse.scheme<array<i64: 1, 16>, f8E8M0FNU, "fp4", "none", "row_major">
!q = !qfuse.qtensor<tensor<64x512xf4E2M1FN>, #s>
func.func @case(%d: tensor<64x256xi8>, %s: tensor<64x4xbf16>, %z: tensor<64x4xi8>) {
  // expected-error @+1 {{packing "fp4" has blocks of [1, 32], not [1, 16]}}
  %q = "qfuse.pack"(%d, %s) : (tensor<64x256xi8>, tensor<64x4xbf16>) -> !q
  return
}

// -----

// A given scale is one number.
#s = #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">
!q = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #s>
func.func @case(%x: tensor<?x512xbf16>, %s: tensor<4xf32>) {
  // expected-error @+1 {{the scale is tensor<4xf32>; expected tensor<1xf32>, one for the whole tensor}}
  %q = "qfuse.quantize"(%x, %s) : (tensor<?x512xbf16>, tensor<4xf32>) -> !q
  return
}

// -----

// A given scale holds for whole rows.
#s = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
!q = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #s>
func.func @case(%x: tensor<?x512xbf16>, %s: tensor<1xf32>) {
  // expected-error @+1 {{a scale for the whole tensor makes blocks of [1, 512] with f32, not}}
  %q = "qfuse.quantize"(%x, %s) : (tensor<?x512xbf16>, tensor<1xf32>) -> !q
  return
}

// -----

// A scale for a whole tensor is f32.
#s = #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">
!q = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #s>
func.func @case(%x: tensor<?x512xbf16>) {
  // expected-error @+1 {{the result is tensor<1xbf16>; expected tensor<1xf32>}}
  %s = "qfuse.tensor_scale"(%x) {storage = i8} : (tensor<?x512xbf16>) -> tensor<1xbf16>
  return
}

// -----

// A scale for a whole tensor is one for a type that can be made.
#s = #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">
!q = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #s>
func.func @case(%x: tensor<?x512xbf16>) {
  // expected-error @+1 {{storage i4 is not one of f8E4M3FN, f8E5M2, i8}}
  %s = "qfuse.tensor_scale"(%x) {storage = i4} : (tensor<?x512xbf16>) -> tensor<1xf32>
  return
}

// -----

// A library has certain calls.
func.func @case(%x: tensor<?x512xbf16>, %w: tensor<192x512xbf16>, %y: tensor<?x192xbf16>) {
  // expected-error @+1 {{call "dgemm" is not one of mm, scaled_mm_blocks}}
  %0 = "qfuse.library_call"(%x, %w) {call = "dgemm", activation = "none", operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<?x512xbf16>, tensor<192x512xbf16>) -> tensor<?x192xbf16>
  return
}

// -----

// A scale is one of the sums.
func.func @case(%x: tensor<?x512xbf16>, %w: tensor<192x512xbf16>, %y: tensor<?x192xbf16>) {
  // expected-error @+1 {{scale is 1.250000e-01 : bf16; expected an f32}}
  %0 = "qfuse.library_call"(%x, %w) {call = "mm", activation = "none", scale = 1.250000e-01 : bf16, operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<?x512xbf16>, tensor<192x512xbf16>) -> tensor<?x192xbf16>
  return
}

// -----

// Its epilogues are few.
func.func @case(%x: tensor<?x512xbf16>, %w: tensor<192x512xbf16>, %y: tensor<?x192xbf16>) {
  // expected-error @+1 {{activation "silu" is not one of none, relu, gelu_tanh}}
  %0 = "qfuse.library_call"(%x, %w) {call = "mm", activation = "silu", operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<?x512xbf16>, tensor<192x512xbf16>) -> tensor<?x192xbf16>
  return
}

// -----

// K is that of both.
func.func @case(%x: tensor<?x512xbf16>, %w: tensor<192x512xbf16>, %y: tensor<?x192xbf16>, %v: tensor<192x256xbf16>) {
  // expected-error @+1 {{K differs: x has [?, 512], w has [192, 256]}}
  %0 = "qfuse.library_call"(%x, %v) {call = "mm", activation = "none", operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<?x512xbf16>, tensor<192x256xbf16>) -> tensor<?x192xbf16>
  return
}

// -----

// The result has N columns.
func.func @case(%x: tensor<?x512xbf16>, %w: tensor<192x512xbf16>, %y: tensor<?x192xbf16>) {
  // expected-error @+1 {{the result is tensor<?x96xbf16>; expected a float [?, 192]}}
  %0 = "qfuse.library_call"(%x, %w) {call = "mm", activation = "none", operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<?x512xbf16>, tensor<192x512xbf16>) -> tensor<?x96xbf16>
  return
}

// -----

// Each part begins somewhere.
func.func @case(%x: tensor<?x512xbf16>, %w: tensor<192x512xbf16>, %y: tensor<?x192xbf16>) {
  // expected-error @+1 {{starts are array<i64: 0>; expected as many i64 as there are parts}}
  %0 = "qfuse.epilogue"(%y) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a) : (f32) -> ()
  }) {parts = array<i64: 96, 96>, starts = array<i64: 0>, maps = [], operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x192xbf16>) -> tensor<?x96xbf16>
  return
}

// -----

// A part lies within the product.
func.func @case(%x: tensor<?x512xbf16>, %w: tensor<192x512xbf16>, %y: tensor<?x192xbf16>) {
  // expected-error @+1 {{a part of 96 columns from 128 on is not in y}}
  %0 = "qfuse.epilogue"(%y) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a) : (f32) -> ()
  }) {parts = array<i64: 96, 96>, starts = array<i64: 0, 128>, maps = [], operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x192xbf16>) -> tensor<?x96xbf16>
  return
}

// -----

// A result is as wide as a part.
func.func @case(%x: tensor<?x512xbf16>, %w: tensor<192x512xbf16>, %y: tensor<?x192xbf16>) {
  // expected-error @+1 {{result 0 is 192 wide, but the parts of w are [96, 96]}}
  %0 = "qfuse.epilogue"(%y) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a) : (f32) -> ()
  }) {parts = array<i64: 96, 96>, starts = array<i64: 0, 96>, maps = [], operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x192xbf16>) -> tensor<?x192xbf16>
  return
}

// -----

// Ranges come in pairs.
func.func @case(%x: tensor<?x512xbf16>, %w: tensor<192x512xbf16>, %y: tensor<?x192xbf16>) {
  // expected-error @+1 {{ranges are array<i64: 2>; expected pairs of i64}}
  %0 = "qfuse.choose"(%x) ({
    "qfuse.result"(%y) : (tensor<?x192xbf16>) -> ()
  }, {
    "qfuse.result"(%y) : (tensor<?x192xbf16>) -> ()
  }) {call = "mm", ranges = array<i64: 2>} : (tensor<?x512xbf16>) -> tensor<?x192xbf16>
  return
}

// -----

// A range has a first number of rows.
func.func @case(%x: tensor<?x512xbf16>, %w: tensor<192x512xbf16>, %y: tensor<?x192xbf16>) {
  // expected-error @+1 {{ranges are [17, 16]; expected first <= last, or -1 for no last}}
  %0 = "qfuse.choose"(%x) ({
    "qfuse.result"(%y) : (tensor<?x192xbf16>) -> ()
  }, {
    "qfuse.result"(%y) : (tensor<?x192xbf16>) -> ()
  }) {call = "mm", ranges = array<i64: 17, 16>} : (tensor<?x512xbf16>) -> tensor<?x192xbf16>
  return
}

// -----

// Both ways give the value.
func.func @case(%x: tensor<?x512xbf16>, %w: tensor<192x512xbf16>, %y: tensor<?x192xbf16>) {
  // expected-error @+1 {{a region gives tensor<?x512xbf16>, not tensor<?x192xbf16>}}
  %0 = "qfuse.choose"(%x) ({
    "qfuse.result"(%x) : (tensor<?x512xbf16>) -> ()
  }, {
    "qfuse.result"(%y) : (tensor<?x192xbf16>) -> ()
  }) {call = "mm", ranges = array<i64: 2, -1>} : (tensor<?x512xbf16>) -> tensor<?x192xbf16>
  return
}

// -----

// A limit is positive.
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{limit is 0.0; it must be positive}}
  %y = "qfuse.glu"(%x, %x) {act = "silu", limit = 0.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x300xbf16>, tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// Not even a NaN.
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{limit is nan; it must be positive}}
  %y = "qfuse.glu"(%x, %x) {act = "silu", limit = 0x7FF8000000000000 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x300xbf16>, tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// A limit is a number.
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{attribute limit is 7 : i64; expected a FloatAttr}}
  %y = "qfuse.glu"(%x, %x) {act = "silu", limit = 7 : i64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x300xbf16>, tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// Only gpt-oss's GLU has an alpha.
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{alpha is 1.5, but act "silu" has none; swiglu_oai has}}
  %y = "qfuse.glu"(%x, %x) {act = "silu", alpha = 1.5 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x300xbf16>, tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// An alpha is finite.
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{alpha is inf; it must be positive and finite}}
  %y = "qfuse.glu"(%x, %x) {act = "swiglu_oai", alpha = 0x7FF0000000000000 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x300xbf16>, tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// A misspelt limit would be none.
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{attribute limits is not one of act, limit, alpha}}
  %y = "qfuse.glu"(%x, %x) {act = "silu", limits = 7.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (tensor<?x300xbf16>, tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// The rows of this product have no experts.
func.func @case(%x: tensor<4x4xf32>, %b: tensor<2x4xf32>) {
  // expected-error @+1 {{map "[E,N]" is for rows that have experts, those of qfuse.group_matmul}}
  %y = "qfuse.matmul"(%x, %x, %b) ({
  ^bb0(%acc: f32, %e: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4>, maps = ["[E,N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<4x4xf32>, tensor<4x4xf32>, tensor<2x4xf32>) -> tensor<4x4xf32>
  return
}

// -----

// silu takes floats only.
func.func @case(%x: tensor<?x300xi8>) {
  // expected-error @+1 {{element type i8 is not f32, f16 or bf16}}
  %y = "qfuse.silu"(%x) : (tensor<?x300xi8>) -> tensor<?x300xbf16>
  return
}

// -----

// sigmoid takes floats only.
func.func @case(%x: tensor<?x300xi8>) {
  // expected-error @+1 {{element type i8 is not f32, f16 or bf16}}
  %y = "qfuse.sigmoid"(%x) : (tensor<?x300xi8>) -> tensor<?x300xbf16>
  return
}

// -----

// tanh takes floats only.
func.func @case(%x: tensor<?x300xi8>) {
  // expected-error @+1 {{element type i8 is not f32, f16 or bf16}}
  %y = "qfuse.tanh"(%x) : (tensor<?x300xi8>) -> tensor<?x300xbf16>
  return
}

// -----

// exp takes floats only.
func.func @case(%x: tensor<?x300xi8>) {
  // expected-error @+1 {{element type i8 is not f32, f16 or bf16}}
  %y = "qfuse.exp"(%x) : (tensor<?x300xi8>) -> tensor<?x300xbf16>
  return
}

// -----

// neg takes floats only.
func.func @case(%x: tensor<?x300xi8>) {
  // expected-error @+1 {{element type i8 is not f32, f16 or bf16}}
  %y = "qfuse.neg"(%x) : (tensor<?x300xi8>) -> tensor<?x300xbf16>
  return
}

// -----

// square takes floats only.
func.func @case(%x: tensor<?x300xi8>) {
  // expected-error @+1 {{element type i8 is not f32, f16 or bf16}}
  %y = "qfuse.square"(%x) : (tensor<?x300xi8>) -> tensor<?x300xbf16>
  return
}

// -----

// cast takes floats only.
func.func @case(%x: tensor<?x300xi8>) {
  // expected-error @+1 {{element type i8 is not f32, f16 or bf16}}
  %y = "qfuse.cast"(%x) : (tensor<?x300xi8>) -> tensor<?x300xbf16>
  return
}

// -----

// The operands of sub broadcast as numpy's do.
func.func @case(%x: tensor<?x300xbf16>, %z: tensor<200xbf16>) {
  // expected-error @+1 {{[?, 300] and [200] do not broadcast}}
  %y = "qfuse.sub"(%x, %z) : (tensor<?x300xbf16>, tensor<200xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// sub has two operands.
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{has 1 operands, not 2}}
  %y = "qfuse.sub"(%x) : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// The operands of div broadcast as numpy's do.
func.func @case(%x: tensor<?x300xbf16>, %z: tensor<200xbf16>) {
  // expected-error @+1 {{[?, 300] and [200] do not broadcast}}
  %y = "qfuse.div"(%x, %z) : (tensor<?x300xbf16>, tensor<200xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// div has two operands.
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{has 1 operands, not 2}}
  %y = "qfuse.div"(%x) : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// A cast keeps the shape.
func.func @case(%x: tensor<4x300xbf16>) {
  // expected-error @+1 {{result shape [300, 4] should be [4, 300]}}
  %y = "qfuse.cast"(%x) : (tensor<4x300xbf16>) -> tensor<300x4xf32>
  return
}

// -----

// A clamp has both bounds, if only as infinities.
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{needs the attribute high}}
  %y = "qfuse.clamp"(%x) {low = 1.0 : f64} : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// Bounds are in order, and numbers.
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{low is 2.0 and high is 1.0; expected low <= high}}
  %y = "qfuse.clamp"(%x) {low = 2.0 : f64, high = 1.0 : f64} : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// NaN bounds nothing.
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{low is nan and high is 1.0; expected low <= high}}
  %y = "qfuse.clamp"(%x) {low = 0x7FF8000000000000 : f64, high = 1.0 : f64} : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// One bound at least.
func.func @case(%x: tensor<?x300xbf16>) {
  // expected-error @+1 {{has no bound; give low, high or both}}
  %y = "qfuse.clamp"(%x) {low = 0xFFF0000000000000 : f64, high = 0x7FF0000000000000 : f64} : (tensor<?x300xbf16>) -> tensor<?x300xbf16>
  return
}

// -----

// A scale belongs to a quantized result.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#whole = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!w = tensor<300x300xbf16>
!s = tensor<1xf32>
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xs = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #whole>
func.func @case(%x: !x, %n: !n, %w: !w, %s: !s) {
  // expected-error @+1 {{has a scale for the result quantized2, which is not there}}
  %0 = "qfuse.rms_norm"(%x, %n, %s) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 1>, resultSegmentSizes = array<i32: 0, 1, 0, 0>} : (!x, !n, !s) -> !xs
  return
}

// -----

// One number.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#whole = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!w = tensor<300x300xbf16>
!s = tensor<1xf32>
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xs = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #whole>
func.func @case(%x: !x, %n: !n, %w: !w, %s: tensor<2xf32>) {
  // expected-error @+1 {{the scale is tensor<2xf32>; expected tensor<1xf32>, one for the whole tensor}}
  %0 = "qfuse.rms_norm"(%x, %n, %s) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 1, 0>, resultSegmentSizes = array<i32: 0, 1, 0, 0>} : (!x, !n, tensor<2xf32>) -> !xs
  return
}

// -----

// It has no groups.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#whole = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!w = tensor<300x300xbf16>
!s = tensor<1xf32>
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xs = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #whole>
func.func @case(%x: !x, %n: !n, %w: !w, %s: !s) {
  // expected-error @+1 {{result quantized: a scale for the whole tensor makes blocks of [1, 300] with f32}}
  %0 = "qfuse.rms_norm"(%x, %n, %s) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 1, 0>, resultSegmentSizes = array<i32: 0, 1, 0, 0>} : (!x, !n, !s) -> !xq
  return
}

// -----

// By one scale there is one value.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#whole = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!w = tensor<300x300xbf16>
!s = tensor<1xf32>
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xs = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #whole>
func.func @case(%x: !x, %n: !n, %w: !w, %s: !s) {
  // expected-error @+1 {{quantizes twice to !qfuse.qtensor}}
  %0, %1 = "qfuse.rms_norm"(%x, %n, %s, %s) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 1, 1>, resultSegmentSizes = array<i32: 0, 1, 1, 0>} : (!x, !n, !s, !s) -> (!xs, !xs)
  return
}

// -----

// A scale that is found comes before one that is given.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#whole = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!w = tensor<300x300xbf16>
!s = tensor<1xf32>
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xs = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #whole>
func.func @case(%x: !x, %n: !n, %w: !w, %s: !s) {
  // expected-error @+1 {{quantized results stand in the order of their formats' text}}
  %0, %1 = "qfuse.rms_norm"(%x, %n, %s) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 1, 0>, resultSegmentSizes = array<i32: 0, 1, 1, 0>} : (!x, !n, !s) -> (!xs, !xs)
  return
}

// -----

// A GLU that quantizes nothing needs no scale.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#whole = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!w = tensor<300x300xbf16>
!s = tensor<1xf32>
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xs = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #whole>
func.func @case(%x: !x, %n: !n, %w: !w, %s: !s) {
  // expected-error @+1 {{has a scale for the result quantized, which is not there}}
  %0 = "qfuse.glu"(%x, %x, %s) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 1>, resultSegmentSizes = array<i32: 1, 0>} : (!x, !x, !s) -> !x
  return
}

// -----

// The scale of a product is one of its operands, a scalar.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#whole = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!w = tensor<300x300xbf16>
!s = tensor<1xf32>
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xs = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #whole>
func.func @case(%x: !x, %n: !n, %w: !w, %s: !s) {
  // expected-error @+1 {{the scale of qfuse.with_scale is no argument of an extra operand of map "[]"}}
  %0 = "qfuse.matmul"(%x, %w, %s) ({
  ^bb0(%acc: f32, %p: f32):
    %v = "qfuse.with_scale"(%acc, %acc) : (f32, f32) -> f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 300>, maps = ["[]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, !s) -> !xs
  return
}

// -----

// Not one for each row.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#whole = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!w = tensor<300x300xbf16>
!s = tensor<1xf32>
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xs = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #whole>
func.func @case(%x: !x, %n: !n, %w: !w, %s: tensor<?x1xf32>) {
  // expected-error @+1 {{the scale of qfuse.with_scale is no argument of an extra operand of map "[]"}}
  %0 = "qfuse.matmul"(%x, %w, %s) ({
  ^bb0(%acc: f32, %p: f32):
    %v = "qfuse.with_scale"(%acc, %p) : (f32, f32) -> f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 300>, maps = ["[M,1]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, tensor<?x1xf32>) -> !xs
  return
}

// -----

// What has a scale is the end of the region.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#whole = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!w = tensor<300x300xbf16>
!s = tensor<1xf32>
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xs = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #whole>
func.func @case(%x: !x, %n: !n, %w: !w, %s: !s) {
  // expected-error @+1 {{a value of qfuse.with_scale may only be yielded}}
  %0 = "qfuse.matmul"(%x, %w, %s) ({
  ^bb0(%acc: f32, %p: f32):
    %v = "qfuse.with_scale"(%acc, %p) : (f32, f32) -> f32
    %u = arith.addf %v, %v : f32
    "qfuse.yield"(%u) : (f32) -> ()
  }) {parts = array<i64: 300>, maps = ["[]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, !s) -> !xs
  return
}

// -----

// Plain results have none.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#whole = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!w = tensor<300x300xbf16>
!s = tensor<1xf32>
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xs = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #whole>
func.func @case(%x: !x, %n: !n, %w: !w, %s: !s) {
  // expected-error @+1 {{result 0 has a scale, but is tensor<?x300xbf16>}}
  %0 = "qfuse.matmul"(%x, %w, %s) ({
  ^bb0(%acc: f32, %p: f32):
    %v = "qfuse.with_scale"(%acc, %p) : (f32, f32) -> f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 300>, maps = ["[]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, !s) -> !x
  return
}

// -----

// Nor have groups.
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#whole = #qfuse.scheme<array<i64: 1, 300>, f32, "none", "none", "row_major">
!x = tensor<?x300xbf16>
!n = tensor<300xbf16>
!w = tensor<300x300xbf16>
!s = tensor<1xf32>
!xq = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!xs = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #whole>
func.func @case(%x: !x, %n: !n, %w: !w, %s: !s) {
  // expected-error @+1 {{result 0: a scale for the whole tensor makes blocks of [1, 300] with f32}}
  %0 = "qfuse.matmul"(%x, %w, %s) ({
  ^bb0(%acc: f32, %p: f32):
    %v = "qfuse.with_scale"(%acc, %p) : (f32, f32) -> f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 300>, maps = ["[]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, !s) -> !xq
  return
}

// -----

// Rows of a product are those of x, known or not.
func.func @case(%x: tensor<?x8xbf16>, %w: tensor<16x8xbf16>) {
  // expected-error @+1 {{result 0 has shape [5, 16], but the rows of x are [?]}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 16>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x8xbf16>, tensor<16x8xbf16>) -> tensor<5x16xbf16>
  return
}

// -----

// The bindings have no class for arrays of every element type.
!w = !qfuse.qtensor<tensor<4x4xf8E4M3FN>, #qfuse.scheme<array<bf16>, f32, "none", "none", "row_major">>
func.func @case(%w: !w) {
  // expected-error @+1 {{the block of a scheme is an array<i64: rows, columns>, not array<bf16>}}
  %q = "qfuse.concat"(%w, %w) {operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (!w, !w) -> !w
  return
}

// -----

func.func @case(%x: tensor<?x8xbf16>, %w: tensor<16x8xbf16>) {
  // expected-error @+1 {{the epilogue region must be one block}}
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  ^bb1(%other: f32):
    "qfuse.yield"(%other) : (f32) -> ()
  }) {parts = array<i64: 16>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x8xbf16>, tensor<16x8xbf16>) -> tensor<?x16xbf16>
  return
}

// -----

func.func @case(%x: tensor<?x8xf64>, %w: tensor<8xbf16>) {
  // expected-error @+1 {{input element type f64 is not f32, f16 or bf16}}
  %y = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x8xf64>, tensor<8xbf16>) -> tensor<?x8xf64>
  return
}
