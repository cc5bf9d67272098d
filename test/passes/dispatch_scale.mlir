// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cuda:sm_80 blas=on' --remarks 2>&1 >/dev/null | filecheck %s --check-prefix SM80
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cuda:sm_89 blas=on' --remarks 2>&1 >/dev/null | filecheck %s --check-prefix SM89
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cuda:sm_90 blas=on' --remarks 2>&1 >/dev/null | filecheck %s --check-prefix SM90
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cuda:sm_100 blas=on' --remarks 2>&1 >/dev/null | filecheck %s --check-prefix SM100
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=hip:gfx942 blas=on' --remarks 2>&1 >/dev/null | filecheck %s --check-prefix GFX942
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cpu blas=on' --remarks 2>&1 >/dev/null | filecheck %s --check-prefix CPU
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cuda:sm_90 blas=on roundings=library' --remarks 2>&1 >/dev/null | filecheck %s --check-prefix FREE
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cuda:sm_90 blas=on' --qfuse-convert-to-blas | filecheck %s --check-prefix IR

// A constant that multiplies a product goes with the library's call where that changes no bits: as
// alpha, or in the scales of an FP8 weight.  The CPU has no library rule.
// A power of two after the rounding of the product, as graphs have it: either order is the same.
// SM80:    dispatch: fired {{.*}}(scaled): M >= 2 to cuBLAS (mm) by plain
// SM89:    dispatch: fired {{.*}}(scaled): M >= 2 to cuBLAS (mm) by plain
// SM90:    dispatch: fired {{.*}}(scaled): M >= 2 to cuBLAS (mm) by plain
// SM100:   dispatch: fired {{.*}}(scaled): M >= 2 to cuBLAS (mm) by plain
// GFX942:  dispatch: fired {{.*}}(scaled): M >= 2 to hipBLAS (mm) by plain
// CPU:     dispatch: fired {{.*}}(scaled): any M to our kernel by own-kernel
// IR:      "qfuse.library_call"(%{{.+}}, %{{.+}}) {activation = "none", call = "mm", operandSegmentSizes = array<i32: 1, 1, 0, 0>, scale = 1.250000e-01 : f32}
func.func @scaled(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "scaled"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %c = arith.constant 1.250000e-01 : f32
    %r = arith.truncf %acc : f32 to bf16
    %x0 = arith.extf %r : bf16 to f32
    %s = arith.mulf %x0, %c : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// Divided by one, which is multiplied by another.
// SM80:    dispatch: fired {{.*}}(divided): M >= 2 to cuBLAS (mm) by plain
// SM89:    dispatch: fired {{.*}}(divided): M >= 2 to cuBLAS (mm) by plain
// SM90:    dispatch: fired {{.*}}(divided): M >= 2 to cuBLAS (mm) by plain
// SM100:   dispatch: fired {{.*}}(divided): M >= 2 to cuBLAS (mm) by plain
// GFX942:  dispatch: fired {{.*}}(divided): M >= 2 to hipBLAS (mm) by plain
// CPU:     dispatch: fired {{.*}}(divided): any M to our kernel by own-kernel
// IR:      "qfuse.library_call"(%{{.+}}, %{{.+}}) {activation = "none", call = "mm", operandSegmentSizes = array<i32: 1, 1, 0, 0>, scale = 1.250000e-01 : f32}
func.func @divided(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "divided"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %c = arith.constant 8.000000e+00 : f32
    %s = arith.divf %acc, %c : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// With a bias and an activation after it.
// SM80:    dispatch: fired {{.*}}(biased): M >= 2 to cuBLAS (mm) by plain
// SM89:    dispatch: fired {{.*}}(biased): M >= 2 to cuBLAS (mm) by plain
// SM90:    dispatch: fired {{.*}}(biased): M >= 2 to cuBLAS (mm) by plain
// SM100:   dispatch: fired {{.*}}(biased): M >= 2 to cuBLAS (mm) by plain
// GFX942:  dispatch: fired {{.*}}(biased): M >= 2 to hipBLAS (mm) by plain
// CPU:     dispatch: fired {{.*}}(biased): any M to our kernel by own-kernel
// IR:      {activation = "relu", call = "mm", operandSegmentSizes = array<i32: 1, 1, 0, 1>, scale = 1.250000e-01 : f32}
func.func @biased(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "biased"}, %e: tensor<4096xbf16>) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w, %e) ({
  ^bb0(%acc: f32, %b: f32):
    %c = arith.constant 1.250000e-01 : f32
    %z = arith.constant 0.0 : f32
    %s = arith.mulf %acc, %c : f32
    %t = arith.addf %s, %b : f32
    %m = arith.maximumf %t, %z : f32
    "qfuse.yield"(%m) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>, tensor<4096xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// Any other number rounds once, here and there, if nothing is added,
// SM80:    dispatch: fired {{.*}}(third): M >= 2 to cuBLAS (mm) by plain
// SM89:    dispatch: fired {{.*}}(third): M >= 2 to cuBLAS (mm) by plain
// SM90:    dispatch: fired {{.*}}(third): M >= 2 to cuBLAS (mm) by plain
// SM100:   dispatch: fired {{.*}}(third): M >= 2 to cuBLAS (mm) by plain
// GFX942:  dispatch: fired {{.*}}(third): M >= 2 to hipBLAS (mm) by plain
// CPU:     dispatch: fired {{.*}}(third): any M to our kernel by own-kernel
// IR:      scale = 3.000000e-01 : f32
func.func @third(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "third"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %c = arith.constant 3.000000e-01 : f32
    %s = arith.mulf %acc, %c : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// and else where the library wants.
// SM80:    dispatch-plain: refused {{.*}}(third_biased): M >= 2: it is 0.3, which rounds (roundings=library allows); a constant scale of the product is a power of two, or no bias follows it
// SM89:    dispatch-plain: refused {{.*}}(third_biased): M >= 2: it is 0.3, which rounds (roundings=library allows); a constant scale of the product is a power of two, or no bias follows it
// SM90:    dispatch-plain: refused {{.*}}(third_biased): M >= 2: it is 0.3, which rounds (roundings=library allows); a constant scale of the product is a power of two, or no bias follows it
// SM100:   dispatch-plain: refused {{.*}}(third_biased): M >= 2: it is 0.3, which rounds (roundings=library allows); a constant scale of the product is a power of two, or no bias follows it
// GFX942:  dispatch-plain: refused {{.*}}(third_biased): M >= 2: it is 0.3, which rounds (roundings=library allows); a constant scale of the product is a power of two, or no bias follows it
// CPU:     dispatch: fired {{.*}}(third_biased): any M to our kernel by own-kernel
// FREE:    dispatch: fired {{.*}}(third_biased): M >= 2 to cuBLAS (mm) by plain
func.func @third_biased(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "third_biased"}, %e: tensor<4096xbf16>) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w, %e) ({
  ^bb0(%acc: f32, %b: f32):
    %c = arith.constant 3.000000e-01 : f32
    %s = arith.mulf %acc, %c : f32
    %t = arith.addf %s, %b : f32
    "qfuse.yield"(%t) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>, tensor<4096xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// A product that was rounded before is another number.
// SM80:    dispatch-plain: refused {{.*}}(third_rounded): M {{[^:]+}}: the product is rounded before its scale (roundings=library allows)
// SM89:    dispatch-plain: refused {{.*}}(third_rounded): M {{[^:]+}}: the product is rounded before its scale (roundings=library allows)
// SM90:    dispatch-plain: refused {{.*}}(third_rounded): M {{[^:]+}}: the product is rounded before its scale (roundings=library allows)
// SM100:   dispatch-plain: refused {{.*}}(third_rounded): M {{[^:]+}}: the product is rounded before its scale (roundings=library allows)
// GFX942:  dispatch-plain: refused {{.*}}(third_rounded): M {{[^:]+}}: the product is rounded before its scale (roundings=library allows)
// CPU:     dispatch: fired {{.*}}(third_rounded): any M to our kernel by own-kernel
// FREE:    dispatch: fired {{.*}}(third_rounded): M >= 2 to cuBLAS (mm) by plain
func.func @third_rounded(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "third_rounded"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %c = arith.constant 3.000000e-01 : f32
    %r = arith.truncf %acc : f32 to bf16
    %x0 = arith.extf %r : bf16 to f32
    %s = arith.mulf %x0, %c : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// f16 has few exponents: a product may overflow there, or be subnormal, and its eighth not.
// SM80:    dispatch-plain: refused {{.*}}(half): M {{[^:]+}}: the product is rounded before its scale (roundings=library allows)
// SM89:    dispatch-plain: refused {{.*}}(half): M {{[^:]+}}: the product is rounded before its scale (roundings=library allows)
// SM90:    dispatch-plain: refused {{.*}}(half): M {{[^:]+}}: the product is rounded before its scale (roundings=library allows)
// SM100:   dispatch-plain: refused {{.*}}(half): M {{[^:]+}}: the product is rounded before its scale (roundings=library allows)
// GFX942:  dispatch-plain: refused {{.*}}(half): M {{[^:]+}}: the product is rounded before its scale (roundings=library allows)
// CPU:     dispatch: fired {{.*}}(half): any M to our kernel by own-kernel
// FREE:    dispatch: fired {{.*}}(half): M >= 2 to cuBLAS (mm) by plain
func.func @half(%x: tensor<?x2048xf16>, %w: tensor<4096x2048xf16> {qfuse.name = "half"}) -> tensor<?x4096xf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %c = arith.constant 1.250000e-01 : f32
    %r = arith.truncf %acc : f32 to f16
    %x0 = arith.extf %r : f16 to f32
    %s = arith.mulf %x0, %c : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xf16>, tensor<4096x2048xf16>) -> tensor<?x4096xf16>
  return %y : tensor<?x4096xf16>
}

// -----

// A scale of the sum with a bias is none of the product.
// SM80:    dispatch-plain: refused {{.*}}(bias_first): M >= 2: the epilogue has arith.addf; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// SM89:    dispatch-plain: refused {{.*}}(bias_first): M >= 2: the epilogue has arith.addf; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// SM90:    dispatch-plain: refused {{.*}}(bias_first): M >= 2: the epilogue has arith.addf; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// SM100:   dispatch-plain: refused {{.*}}(bias_first): M >= 2: the epilogue has arith.addf; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// GFX942:  dispatch-plain: refused {{.*}}(bias_first): M >= 2: the epilogue has arith.addf; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// CPU:     dispatch: fired {{.*}}(bias_first): any M to our kernel by own-kernel
func.func @bias_first(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "bias_first"}, %e: tensor<4096xbf16>) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w, %e) ({
  ^bb0(%acc: f32, %b: f32):
    %c = arith.constant 1.250000e-01 : f32
    %t = arith.addf %acc, %b : f32
    %s = arith.mulf %t, %c : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>, tensor<4096xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// The scales of an FP8 weight can have a power of two,
// SM80:    dispatch-fp8-rows: refused {{.*}}(fp8_rows): M >= 2: the target is cuda:sm_80; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950)
// SM89:    dispatch: fired {{.*}}(fp8_rows): M >= 2 to cuBLAS (scaled_mm_rows) by fp8-rows
// SM90:    dispatch: fired {{.*}}(fp8_rows): M >= 2 to cuBLAS (scaled_mm_rows) by fp8-rows
// SM100:   dispatch: fired {{.*}}(fp8_rows): M >= 2 to cuBLAS (scaled_mm_rows) by fp8-rows
// GFX942:  dispatch-fp8-rows: refused {{.*}}(fp8_rows): M >= 2: the target is hip:gfx942; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950)
// CPU:     dispatch: fired {{.*}}(fp8_rows): any M to our kernel by own-kernel
// IR:      call = "scaled_mm_rows", operandSegmentSizes = array<i32: 1, 1, 0, 0>, scale = 1.250000e-01 : f32}
func.func @fp8_rows(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_rows"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %c = arith.constant 1.250000e-01 : f32
    %r = arith.truncf %acc : f32 to bf16
    %x0 = arith.extf %r : bf16 to f32
    %s = arith.mulf %x0, %c : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// and nothing else, which would be multiplied before the sums are.
// SM80:    dispatch-fp8-rows: refused {{.*}}(fp8_rows_third): M >= 2: the target is cuda:sm_80 and it is 0.3, which rounds (roundings=library allows); CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950) and a constant scale of the product is a power of two, so that scales of w can have it
// SM89:    dispatch-fp8-rows: refused {{.*}}(fp8_rows_third): M >= 2: it is 0.3, which rounds (roundings=library allows); a constant scale of the product is a power of two, so that scales of w can have it
// SM90:    dispatch-fp8-rows: refused {{.*}}(fp8_rows_third): M >= 2: it is 0.3, which rounds (roundings=library allows); a constant scale of the product is a power of two, so that scales of w can have it
// SM100:   dispatch-fp8-rows: refused {{.*}}(fp8_rows_third): M >= 2: it is 0.3, which rounds (roundings=library allows); a constant scale of the product is a power of two, so that scales of w can have it
// GFX942:  dispatch-fp8-rows: refused {{.*}}(fp8_rows_third): M >= 2: the target is hip:gfx942 and it is 0.3, which rounds (roundings=library allows); CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950) and a constant scale of the product is a power of two, so that scales of w can have it
// CPU:     dispatch: fired {{.*}}(fp8_rows_third): any M to our kernel by own-kernel
// FREE:    dispatch: fired {{.*}}(fp8_rows_third): M >= 2 to cuBLAS (scaled_mm_rows) by fp8-rows
func.func @fp8_rows_third(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_rows_third"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %c = arith.constant 3.000000e-01 : f32
    %s = arith.mulf %acc, %c : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// So of blocks,
// SM80:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks): M >= 2: the target is cuda:sm_80; CUDA of architecture 9.x, with cublasLt 12.9 or later
// SM89:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks): M >= 2: the target is cuda:sm_89; CUDA of architecture 9.x, with cublasLt 12.9 or later
// SM90:    dispatch: fired {{.*}}(fp8_blocks): M >= 2 to cuBLAS (scaled_mm_blocks) by fp8-blocks
// SM100:   dispatch-fp8-blocks: refused {{.*}}(fp8_blocks): M >= 2: the target is cuda:sm_100; CUDA of architecture 9.x, with cublasLt 12.9 or later
// GFX942:  dispatch-fp8-blocks: refused {{.*}}(fp8_blocks): M >= 2: the target is hip:gfx942; CUDA of architecture 9.x, with cublasLt 12.9 or later
// CPU:     dispatch: fired {{.*}}(fp8_blocks): any M to our kernel by own-kernel
// IR:      call = "scaled_mm_blocks", operandSegmentSizes = array<i32: 1, 1, 0, 0>, scale = 1.250000e-01 : f32}
func.func @fp8_blocks(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_blocks"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %c = arith.constant 1.250000e-01 : f32
    %r = arith.truncf %acc : f32 to bf16
    %x0 = arith.extf %r : bf16 to f32
    %s = arith.mulf %x0, %c : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// and of blocks alone.
// SM80:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_third): M >= 2: the target is cuda:sm_80 and it is 0.3, which rounds (roundings=library allows); CUDA of architecture 9.x, with cublasLt 12.9 or later and a constant scale of the product is a power of two, so that scales of w can have it
// SM89:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_third): M >= 2: the target is cuda:sm_89 and it is 0.3, which rounds (roundings=library allows); CUDA of architecture 9.x, with cublasLt 12.9 or later and a constant scale of the product is a power of two, so that scales of w can have it
// SM90:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_third): M >= 2: it is 0.3, which rounds (roundings=library allows); a constant scale of the product is a power of two, so that scales of w can have it
// SM100:   dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_third): M >= 2: the target is cuda:sm_100 and it is 0.3, which rounds (roundings=library allows); CUDA of architecture 9.x, with cublasLt 12.9 or later and a constant scale of the product is a power of two, so that scales of w can have it
// GFX942:  dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_third): M >= 2: the target is hip:gfx942 and it is 0.3, which rounds (roundings=library allows); CUDA of architecture 9.x, with cublasLt 12.9 or later and a constant scale of the product is a power of two, so that scales of w can have it
// CPU:     dispatch: fired {{.*}}(fp8_blocks_third): any M to our kernel by own-kernel
// FREE:    dispatch: fired {{.*}}(fp8_blocks_third): M >= 2 to cuBLAS (scaled_mm_blocks) by fp8-blocks
func.func @fp8_blocks_third(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_blocks_third"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %c = arith.constant 3.000000e-01 : f32
    %s = arith.mulf %acc, %c : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// Grouped products and those of i8 have no place for it.
// SM80:    dispatch-plain-experts: refused {{.*}}(experts): M >= 3: the target is cuda:sm_80 and the epilogue has a scale of 0.125; CUDA of architecture 9.0 or later, or hip and there is no epilogue, no bias either
// SM89:    dispatch-plain-experts: refused {{.*}}(experts): M >= 3: the target is cuda:sm_89 and the epilogue has a scale of 0.125; CUDA of architecture 9.0 or later, or hip and there is no epilogue, no bias either
// SM90:    dispatch-plain-experts: refused {{.*}}(experts): M >= 3: the epilogue has a scale of 0.125; there is no epilogue, no bias either
// SM100:   dispatch-plain-experts: refused {{.*}}(experts): M >= 3: the epilogue has a scale of 0.125; there is no epilogue, no bias either
// GFX942:  dispatch-plain-experts: refused {{.*}}(experts): M >= 3: the epilogue has a scale of 0.125; there is no epilogue, no bias either
// CPU:     dispatch: fired {{.*}}(experts): any M to our kernel by own-kernel
func.func @experts(%x: tensor<?x2x512xbf16>, %w: tensor<8x256x512xbf16> {qfuse.name = "experts"}, %indptr: tensor<9xi32>) -> tensor<?x2x256xbf16> {
  %y = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    %c = arith.constant 1.250000e-01 : f32
    %s = arith.mulf %acc, %c : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2x512xbf16>, tensor<8x256x512xbf16>, tensor<9xi32>) -> tensor<?x2x256xbf16>
  return %y : tensor<?x2x256xbf16>
}

// -----

// Zero times whatever is no number is none.
// SM80:    dispatch-plain: refused {{.*}}(zero): M >= 2: the epilogue has arith.mulf; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// SM89:    dispatch-plain: refused {{.*}}(zero): M >= 2: the epilogue has arith.mulf; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// SM90:    dispatch-plain: refused {{.*}}(zero): M >= 2: the epilogue has arith.mulf; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// SM100:   dispatch-plain: refused {{.*}}(zero): M >= 2: the epilogue has arith.mulf; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// GFX942:  dispatch-plain: refused {{.*}}(zero): M >= 2: the epilogue has arith.mulf; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// CPU:     dispatch: fired {{.*}}(zero): any M to our kernel by own-kernel
func.func @zero(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "zero"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %c = arith.constant 0.0 : f32
    %s = arith.mulf %acc, %c : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}
