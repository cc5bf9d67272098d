// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cuda:sm_80 blas=on' --remarks 2>&1 >/dev/null | filecheck %s --check-prefix SM80
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cuda:sm_89 blas=on' --remarks 2>&1 >/dev/null | filecheck %s --check-prefix SM89
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cuda:sm_90 blas=on' --remarks 2>&1 >/dev/null | filecheck %s --check-prefix SM90
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cuda:sm_100 blas=on' --remarks 2>&1 >/dev/null | filecheck %s --check-prefix SM100
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=hip:gfx942 blas=on' --remarks 2>&1 >/dev/null | filecheck %s --check-prefix GFX942
// RUN: qfuse-opt %s --split-input-file --qfuse-dispatch='target=cpu blas=on' --remarks 2>&1 >/dev/null | filecheck %s --check-prefix CPU

// Every rule, and every guard, on every kind of target, with library products wherever there is one.
// The names are those of the weights.  What our kernel gets because nothing else fits goes unsaid.

// SM80:    dispatch: fired {{.*}}(plain): M = 1 to our kernel by single-row
// SM89:    dispatch: fired {{.*}}(plain): M = 1 to our kernel by single-row
// SM90:    dispatch: fired {{.*}}(plain): M = 1 to our kernel by single-row
// SM100:   dispatch: fired {{.*}}(plain): M = 1 to our kernel by single-row
// GFX942:  dispatch: fired {{.*}}(plain): M = 1 to our kernel by single-row
// Unquantized: the library's on every GPU, but for one row, and ours on the CPU.
// SM80:    dispatch: fired {{.*}}(plain): M >= 2 to cuBLAS (mm) by plain
// SM89:    dispatch: fired {{.*}}(plain): M >= 2 to cuBLAS (mm) by plain
// SM90:    dispatch: fired {{.*}}(plain): M >= 2 to cuBLAS (mm) by plain
// SM100:   dispatch: fired {{.*}}(plain): M >= 2 to cuBLAS (mm) by plain
// GFX942:  dispatch: fired {{.*}}(plain): M >= 2 to hipBLAS (mm) by plain
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(plain): any M: nothing was measured of it (qfuse tune); the call is measured to be faster
func.func @plain(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "plain"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// Leading dimensions of x are rows: every one of them meets the one weight.
// SM80:    dispatch: fired {{.*}}(batched): M >= 2 to cuBLAS (mm) by plain
// SM89:    dispatch: fired {{.*}}(batched): M >= 2 to cuBLAS (mm) by plain
// SM90:    dispatch: fired {{.*}}(batched): M >= 2 to cuBLAS (mm) by plain
// SM100:   dispatch: fired {{.*}}(batched): M >= 2 to cuBLAS (mm) by plain
// GFX942:  dispatch: fired {{.*}}(batched): M >= 2 to hipBLAS (mm) by plain
// CPU:     dispatch: fired {{.*}}(batched): any M to our kernel by own-kernel
func.func @batched(%x: tensor<2x?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "batched"}) -> tensor<2x?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<2x?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<2x?x4096xbf16>
  return %y : tensor<2x?x4096xbf16>
}

// -----

// Of f32, too.
// SM80:    dispatch: fired {{.*}}(f32): M >= 2 to cuBLAS (mm) by plain
// SM89:    dispatch: fired {{.*}}(f32): M >= 2 to cuBLAS (mm) by plain
// SM90:    dispatch: fired {{.*}}(f32): M >= 2 to cuBLAS (mm) by plain
// SM100:   dispatch: fired {{.*}}(f32): M >= 2 to cuBLAS (mm) by plain
// GFX942:  dispatch: fired {{.*}}(f32): M >= 2 to hipBLAS (mm) by plain
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(f32): any M: nothing was measured of it (qfuse tune); the call is measured to be faster
func.func @f32(%x: tensor<?x2048xf32>, %w: tensor<4096x2048xf32> {qfuse.name = "f32"}) -> tensor<?x4096xf32> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xf32>, tensor<4096x2048xf32>) -> tensor<?x4096xf32>
  return %y : tensor<?x4096xf32>
}

// -----

// A bias goes with it.
// SM80:    dispatch: fired {{.*}}(bias): M >= 2 to cuBLAS (mm) by plain
// SM89:    dispatch: fired {{.*}}(bias): M >= 2 to cuBLAS (mm) by plain
// SM90:    dispatch: fired {{.*}}(bias): M >= 2 to cuBLAS (mm) by plain
// SM100:   dispatch: fired {{.*}}(bias): M >= 2 to cuBLAS (mm) by plain
// GFX942:  dispatch: fired {{.*}}(bias): M >= 2 to hipBLAS (mm) by plain
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(bias): any M: the epilogue has bias; there is no epilogue, no bias either
func.func @bias(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "bias"}, %e: tensor<4096xbf16>) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w, %e) ({
  ^bb0(%acc: f32, %v: f32):
    %s = arith.addf %acc, %v : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>, tensor<4096xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// A library product has one type.
// SM80:    dispatch-plain: refused {{.*}}(promoted): M >= 2: the scheme is bf16 by bf16, the result f32; x and w are of one type, f16, bf16 or f32, and the result, too
// SM89:    dispatch-plain: refused {{.*}}(promoted): M >= 2: the scheme is bf16 by bf16, the result f32; x and w are of one type, f16, bf16 or f32, and the result, too
// SM90:    dispatch-plain: refused {{.*}}(promoted): M >= 2: the scheme is bf16 by bf16, the result f32; x and w are of one type, f16, bf16 or f32, and the result, too
// SM100:   dispatch-plain: refused {{.*}}(promoted): M >= 2: the scheme is bf16 by bf16, the result f32; x and w are of one type, f16, bf16 or f32, and the result, too
// GFX942:  dispatch-plain: refused {{.*}}(promoted): M >= 2: the scheme is bf16 by bf16, the result f32; x and w are of one type, f16, bf16 or f32, and the result, too
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(promoted): any M: the scheme is bf16 by bf16, the result f32; x and w are of one type, f16, bf16 or f32, and the result, too
func.func @promoted(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "promoted"}) -> tensor<?x4096xf32> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xf32>
  return %y : tensor<?x4096xf32>
}

// -----

// A residual is none of a library's epilogues.
// SM80:    dispatch-plain: refused {{.*}}(residual): M >= 2: the epilogue has a residual; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// SM89:    dispatch-plain: refused {{.*}}(residual): M >= 2: the epilogue has a residual; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// SM90:    dispatch-plain: refused {{.*}}(residual): M >= 2: the epilogue has a residual; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// SM100:   dispatch-plain: refused {{.*}}(residual): M >= 2: the epilogue has a residual; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// GFX942:  dispatch-plain: refused {{.*}}(residual): M >= 2: the epilogue has a residual; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(residual): any M: the epilogue has a residual; there is no epilogue, no bias either
func.func @residual(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "residual"}, %e: tensor<?x4096xbf16>) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w, %e) ({
  ^bb0(%acc: f32, %v: f32):
    %s = arith.addf %acc, %v : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = ["[M,N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>, tensor<?x4096xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// An epilogue that begins with a rounding may be computed apart, if that is faster.
// SM80:    dispatch-plain-apart: refused {{.*}}(square): M 2..64: at M = 64 estimated
// SM80:    dispatch: fired {{.*}}(square): M 65..256 to cuBLAS (mm, epilogue apart) by plain-apart
// SM80:    dispatch-plain-apart: refused {{.*}}(square): M >= 257: at M = 8192 estimated
// SM89:    dispatch-plain-apart: refused {{.*}}(square): M >= 2: at M = 8192 estimated
// SM90:    dispatch-plain-apart: refused {{.*}}(square): M 2..64: at M = 64 estimated
// SM90:    dispatch: fired {{.*}}(square): M 65..256 to cuBLAS (mm, epilogue apart) by plain-apart
// SM90:    dispatch-plain-apart: refused {{.*}}(square): M >= 257: at M = 8192 estimated
// SM100:   dispatch-plain-apart: refused {{.*}}(square): M 2..16: at M = 16 estimated
// SM100:   dispatch: fired {{.*}}(square): M >= 17 to cuBLAS (mm, epilogue apart) by plain-apart
// GFX942:  dispatch-plain-apart: refused {{.*}}(square): M 2..64: at M = 64 estimated
// GFX942:  dispatch: fired {{.*}}(square): M 65..256 to hipBLAS (mm, epilogue apart) by plain-apart
// GFX942:  dispatch-plain-apart: refused {{.*}}(square): M >= 257: at M = 8192 estimated
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(square): any M: the epilogue has arith.mulf; there is no epilogue, no bias either
func.func @square(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "square"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %r = arith.truncf %acc : f32 to bf16
    %x0 = arith.extf %r : bf16 to f32
    %s = arith.mulf %x0, %x0 : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// Of one type.
// SM80:    dispatch-plain-apart: refused {{.*}}(mixed_square): M >= 2: the scheme is bf16 by f16; x and w are of one type, f16 or bf16
// SM89:    dispatch-plain-apart, fp8-rows-apart: refused {{.*}}(mixed_square): M >= 2: the scheme is bf16 by f16; x and w are of one type, f16 or bf16; or x and w are E4M3 with one f32 scale for each row
// SM90:    dispatch-plain-apart, fp8-rows-apart: refused {{.*}}(mixed_square): M >= 2: the scheme is bf16 by f16; x and w are of one type, f16 or bf16; or x and w are E4M3 with one f32 scale for each row
// SM100:   dispatch-plain-apart, fp8-rows-apart: refused {{.*}}(mixed_square): M >= 2: the scheme is bf16 by f16; x and w are of one type, f16 or bf16; or x and w are E4M3 with one f32 scale for each row
// GFX942:  dispatch-plain-apart: refused {{.*}}(mixed_square): M >= 2: the scheme is bf16 by f16; x and w are of one type, f16 or bf16
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(mixed_square): any M: the scheme is bf16 by f16, the result bf16 and the epilogue has arith.mulf; x and w are of one type, f16, bf16 or f32, and the result, too and there is no epilogue, no bias either
func.func @mixed_square(%x: tensor<?x2048xbf16>, %w: tensor<4096x2048xf16> {qfuse.name = "mixed_square"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %r = arith.truncf %acc : f32 to bf16
    %x0 = arith.extf %r : bf16 to f32
    %s = arith.mulf %x0, %x0 : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, tensor<4096x2048xf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// But not one of several results.
// SM80:    dispatch-plain: refused {{.*}}(two_results): M >= 2: the epilogue has 2 results of 2 parts of the weight; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// SM80:    dispatch-plain-apart: refused {{.*}}(two_results): M >= 2: it has 2; the epilogue has one result
// SM89:    dispatch-plain: refused {{.*}}(two_results): M >= 2: the epilogue has 2 results of 2 parts of the weight; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// SM89:    dispatch-plain-apart: refused {{.*}}(two_results): M >= 2: it has 2; the epilogue has one result
// SM90:    dispatch-plain: refused {{.*}}(two_results): M >= 2: the epilogue has 2 results of 2 parts of the weight; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// SM90:    dispatch-plain-apart: refused {{.*}}(two_results): M >= 2: it has 2; the epilogue has one result
// SM100:   dispatch-plain: refused {{.*}}(two_results): M >= 2: the epilogue has 2 results of 2 parts of the weight; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// SM100:   dispatch-plain-apart: refused {{.*}}(two_results): M >= 2: it has 2; the epilogue has one result
// GFX942:  dispatch-plain: refused {{.*}}(two_results): M >= 2: the epilogue has 2 results of 2 parts of the weight; the epilogue is nothing, a bias, or a bias and relu or gelu_tanh
// GFX942:  dispatch-plain-apart: refused {{.*}}(two_results): M >= 2: it has 2; the epilogue has one result
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(two_results): any M: the epilogue has 2 results of 2 parts of the weight; there is no epilogue, no bias either
func.func @two_results(%x: tensor<?x2048xbf16>, %w: tensor<512x2048xbf16> {qfuse.name = "two_results"}) -> (tensor<?x256xbf16>, tensor<?x256xbf16>) {
  %y0, %y1 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc0: f32, %acc1: f32):
    %r0 = arith.truncf %acc0 : f32 to bf16
    %x0 = arith.extf %r0 : bf16 to f32
    %r1 = arith.truncf %acc1 : f32 to bf16
    %x1 = arith.extf %r1 : bf16 to f32
    "qfuse.yield"(%x0, %x1) : (f32, f32) -> ()
  }) {parts = array<i64: 256, 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<?x2048xbf16>, tensor<512x2048xbf16>) -> (tensor<?x256xbf16>, tensor<?x256xbf16>)
  return %y0, %y1 : tensor<?x256xbf16>, tensor<?x256xbf16>
}

// -----

// Blocks of FP8 are cublasLt's on architecture 9.x alone.
// SM80:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks): M >= 2: the target is cuda:sm_80; CUDA of architecture 9.x, with cublasLt 12.9 or later
// SM89:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks): M >= 2: the target is cuda:sm_89; CUDA of architecture 9.x, with cublasLt 12.9 or later
// SM90:    dispatch: fired {{.*}}(fp8_blocks): M >= 2 to cuBLAS (scaled_mm_blocks) by fp8-blocks
// SM100:   dispatch-fp8-blocks: refused {{.*}}(fp8_blocks): M >= 2: the target is cuda:sm_100; CUDA of architecture 9.x, with cublasLt 12.9 or later
// GFX942:  dispatch-fp8-blocks: refused {{.*}}(fp8_blocks): M >= 2: the target is hip:gfx942; CUDA of architecture 9.x, with cublasLt 12.9 or later
// CPU:     dispatch-fp8-blocks: refused {{.*}}(fp8_blocks): any M: the target is cpu; CUDA of architecture 9.x, with cublasLt 12.9 or later
func.func @fp8_blocks(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_blocks"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// Not with the scales of x row by row.
// SM80:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_as_rows): M >= 2: the target is cuda:sm_80 and the scales of x lie row by row (qfuse-choose-scale-layout); CUDA of architecture 9.x, with cublasLt 12.9 or later and the scales of x lie group by group
// SM89:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_as_rows): M >= 2: the target is cuda:sm_89 and the scales of x lie row by row (qfuse-choose-scale-layout); CUDA of architecture 9.x, with cublasLt 12.9 or later and the scales of x lie group by group
// SM90:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_as_rows): M >= 2: the scales of x lie row by row (qfuse-choose-scale-layout); the scales of x lie group by group
// SM100:   dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_as_rows): M >= 2: the target is cuda:sm_100 and the scales of x lie row by row (qfuse-choose-scale-layout); CUDA of architecture 9.x, with cublasLt 12.9 or later and the scales of x lie group by group
// GFX942:  dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_as_rows): M >= 2: the target is hip:gfx942 and the scales of x lie row by row (qfuse-choose-scale-layout); CUDA of architecture 9.x, with cublasLt 12.9 or later and the scales of x lie group by group
// CPU:     dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_as_rows): any M: the target is cpu and the scales of x lie row by row (qfuse-choose-scale-layout); CUDA of architecture 9.x, with cublasLt 12.9 or later and the scales of x lie group by group
func.func @fp8_blocks_as_rows(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_blocks_as_rows"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// Nor with N that is no multiple of 16.
// SM80:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_ragged): M >= 2: the target is cuda:sm_80 and N x K is 1400 x 2048; CUDA of architecture 9.x, with cublasLt 12.9 or later and N and K are multiples of 16
// SM89:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_ragged): M >= 2: the target is cuda:sm_89 and N x K is 1400 x 2048; CUDA of architecture 9.x, with cublasLt 12.9 or later and N and K are multiples of 16
// SM90:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_ragged): M >= 2: N x K is 1400 x 2048; N and K are multiples of 16
// SM100:   dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_ragged): M >= 2: the target is cuda:sm_100 and N x K is 1400 x 2048; CUDA of architecture 9.x, with cublasLt 12.9 or later and N and K are multiples of 16
// GFX942:  dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_ragged): M >= 2: the target is hip:gfx942 and N x K is 1400 x 2048; CUDA of architecture 9.x, with cublasLt 12.9 or later and N and K are multiples of 16
// CPU:     dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_ragged): any M: the target is cpu and N x K is 1400 x 2048; CUDA of architecture 9.x, with cublasLt 12.9 or later and N and K are multiples of 16
func.func @fp8_blocks_ragged(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<1400x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_blocks_ragged"}) -> tensor<?x1400xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<1400x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x1400xbf16>
  return %y : tensor<?x1400xbf16>
}

// -----

// Nor in other blocks.
// SM80:    dispatch-plain, int8: refused {{.*}}(fp8_blocks_of_64): M >= 2: the scheme is f8E4M3FN 1x128 by f8E4M3FN 64x128, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are i8 with one f32 scale for each row
// SM89:    dispatch-plain, fp8-rows, int8: refused {{.*}}(fp8_blocks_of_64): M >= 2: the scheme is f8E4M3FN 1x128 by f8E4M3FN 64x128, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are E4M3 with one f32 scale for each row; or x and w are i8 with one f32 scale for each row
// SM90:    dispatch-plain, fp8-blocks, fp8-rows, int8: refused {{.*}}(fp8_blocks_of_64): M >= 2: the scheme is f8E4M3FN 1x128 by f8E4M3FN 64x128, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x is E4M3 per 1x128 and w FP8 per 128x128, with f32 scales; or x and w are E4M3 with one f32 scale for each row; or x and w are i8 with one f32 scale for each row
// SM100:   dispatch-plain, fp8-rows, int8: refused {{.*}}(fp8_blocks_of_64): M >= 2: the scheme is f8E4M3FN 1x128 by f8E4M3FN 64x128, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are E4M3 with one f32 scale for each row; or x and w are i8 with one f32 scale for each row
// GFX942:  dispatch-plain: refused {{.*}}(fp8_blocks_of_64): M >= 2: the scheme is f8E4M3FN 1x128 by f8E4M3FN 64x128, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(fp8_blocks_of_64): any M: the scheme is f8E4M3FN 1x128 by f8E4M3FN 64x128, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too
func.func @fp8_blocks_of_64(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 64, 128>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_blocks_of_64"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 64, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// Nor for an f32 result.
// SM80:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_f32): M >= 2: the target is cuda:sm_80 and it is f32; CUDA of architecture 9.x, with cublasLt 12.9 or later and the result is bf16 or f16
// SM89:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_f32): M >= 2: the target is cuda:sm_89 and it is f32; CUDA of architecture 9.x, with cublasLt 12.9 or later and the result is bf16 or f16
// SM90:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_f32): M >= 2: it is f32; the result is bf16 or f16
// SM100:   dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_f32): M >= 2: the target is cuda:sm_100 and it is f32; CUDA of architecture 9.x, with cublasLt 12.9 or later and the result is bf16 or f16
// GFX942:  dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_f32): M >= 2: the target is hip:gfx942 and it is f32; CUDA of architecture 9.x, with cublasLt 12.9 or later and the result is bf16 or f16
// CPU:     dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_f32): any M: the target is cpu and it is f32; CUDA of architecture 9.x, with cublasLt 12.9 or later and the result is bf16 or f16
func.func @fp8_blocks_f32(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_blocks_f32"}) -> tensor<?x4096xf32> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xf32>
  return %y : tensor<?x4096xf32>
}

// -----

// Nor with a residual.
// SM80:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_residual): M >= 2: the target is cuda:sm_80 and the epilogue has a residual; CUDA of architecture 9.x, with cublasLt 12.9 or later and the epilogue is nothing or a bias
// SM89:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_residual): M >= 2: the target is cuda:sm_89 and the epilogue has a residual; CUDA of architecture 9.x, with cublasLt 12.9 or later and the epilogue is nothing or a bias
// SM90:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_residual): M >= 2: the epilogue has a residual; the epilogue is nothing or a bias
// SM100:   dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_residual): M >= 2: the target is cuda:sm_100 and the epilogue has a residual; CUDA of architecture 9.x, with cublasLt 12.9 or later and the epilogue is nothing or a bias
// GFX942:  dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_residual): M >= 2: the target is hip:gfx942 and the epilogue has a residual; CUDA of architecture 9.x, with cublasLt 12.9 or later and the epilogue is nothing or a bias
// CPU:     dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_residual): any M: the target is cpu and the epilogue has a residual; CUDA of architecture 9.x, with cublasLt 12.9 or later and the epilogue is nothing or a bias
func.func @fp8_blocks_residual(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_blocks_residual"}, %e: tensor<?x4096xbf16>) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w, %e) ({
  ^bb0(%acc: f32, %v: f32):
    %s = arith.addf %acc, %v : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = ["[M,N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>, tensor<?x4096xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// What begins with a rounding may be computed apart, if that is faster.
// SM80:    dispatch-fp8-blocks-apart: refused {{.*}}(fp8_blocks_square): M >= 2: the target is cuda:sm_80; CUDA of architecture 9.x, with cublasLt 12.9 or later
// SM89:    dispatch-fp8-blocks-apart: refused {{.*}}(fp8_blocks_square): M >= 2: the target is cuda:sm_89; CUDA of architecture 9.x, with cublasLt 12.9 or later
// SM90:    dispatch-fp8-blocks: refused {{.*}}(fp8_blocks_square): M >= 2: the epilogue has arith.mulf; the epilogue is nothing or a bias
// SM90:    dispatch-fp8-blocks-apart: refused {{.*}}(fp8_blocks_square): M >= 2: at M = 8192 estimated
// SM100:   dispatch-fp8-blocks-apart: refused {{.*}}(fp8_blocks_square): M >= 2: the target is cuda:sm_100; CUDA of architecture 9.x, with cublasLt 12.9 or later
// GFX942:  dispatch-fp8-blocks-apart: refused {{.*}}(fp8_blocks_square): M >= 2: the target is hip:gfx942; CUDA of architecture 9.x, with cublasLt 12.9 or later
// CPU:     dispatch-fp8-blocks-apart: refused {{.*}}(fp8_blocks_square): any M: the target is cpu; CUDA of architecture 9.x, with cublasLt 12.9 or later
func.func @fp8_blocks_square(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_blocks_square"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %r = arith.truncf %acc : f32 to bf16
    %x0 = arith.extf %r : bf16 to f32
    %s = arith.mulf %x0, %x0 : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// FP8 per row needs architecture 8.9, or OCP's FP8 on hip.
// SM80:    dispatch-fp8-rows: refused {{.*}}(fp8_rows): M >= 2: the target is cuda:sm_80; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950)
// SM89:    dispatch: fired {{.*}}(fp8_rows): M >= 2 to cuBLAS (scaled_mm_rows) by fp8-rows
// SM90:    dispatch: fired {{.*}}(fp8_rows): M >= 2 to cuBLAS (scaled_mm_rows) by fp8-rows
// SM100:   dispatch: fired {{.*}}(fp8_rows): M >= 2 to cuBLAS (scaled_mm_rows) by fp8-rows
// GFX942:  dispatch-fp8-rows: refused {{.*}}(fp8_rows): M >= 2: the target is hip:gfx942; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950)
// CPU:     dispatch-fp8-rows: refused {{.*}}(fp8_rows): any M: the target is cpu; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950)
func.func @fp8_rows(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_rows"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// Its result is bf16.
// SM80:    dispatch-fp8-rows: refused {{.*}}(fp8_rows_f16): M >= 2: the target is cuda:sm_80 and it is f16; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950) and the result is bf16
// SM89:    dispatch-fp8-rows: refused {{.*}}(fp8_rows_f16): M >= 2: it is f16; the result is bf16
// SM90:    dispatch-fp8-rows: refused {{.*}}(fp8_rows_f16): M >= 2: it is f16; the result is bf16
// SM100:   dispatch-fp8-rows: refused {{.*}}(fp8_rows_f16): M >= 2: it is f16; the result is bf16
// GFX942:  dispatch-fp8-rows: refused {{.*}}(fp8_rows_f16): M >= 2: the target is hip:gfx942 and it is f16; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950) and the result is bf16
// CPU:     dispatch-fp8-rows: refused {{.*}}(fp8_rows_f16): any M: the target is cpu and it is f16; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950) and the result is bf16
func.func @fp8_rows_f16(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_rows_f16"}) -> tensor<?x4096xf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xf16>
  return %y : tensor<?x4096xf16>
}

// -----

// N and K are multiples of 16.
// SM80:    dispatch-fp8-rows: refused {{.*}}(fp8_rows_ragged): M >= 2: the target is cuda:sm_80 and N x K is 1400 x 2048; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950) and N and K are multiples of 16
// SM89:    dispatch-fp8-rows: refused {{.*}}(fp8_rows_ragged): M >= 2: N x K is 1400 x 2048; N and K are multiples of 16
// SM90:    dispatch-fp8-rows: refused {{.*}}(fp8_rows_ragged): M >= 2: N x K is 1400 x 2048; N and K are multiples of 16
// SM100:   dispatch-fp8-rows: refused {{.*}}(fp8_rows_ragged): M >= 2: N x K is 1400 x 2048; N and K are multiples of 16
// GFX942:  dispatch-fp8-rows: refused {{.*}}(fp8_rows_ragged): M >= 2: the target is hip:gfx942 and N x K is 1400 x 2048; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950) and N and K are multiples of 16
// CPU:     dispatch-fp8-rows: refused {{.*}}(fp8_rows_ragged): any M: the target is cpu and N x K is 1400 x 2048; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950) and N and K are multiples of 16
func.func @fp8_rows_ragged(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<1400x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_rows_ragged"}) -> tensor<?x1400xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<1400x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x1400xbf16>
  return %y : tensor<?x1400xbf16>
}

// -----

// And its epilogue may be computed apart.
// SM80:    dispatch-fp8-rows-apart: refused {{.*}}(fp8_rows_square): M >= 2: the target is cuda:sm_80; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950)
// SM89:    dispatch-fp8-rows: refused {{.*}}(fp8_rows_square): M >= 2: the epilogue has arith.mulf; the epilogue is nothing or a bias
// SM89:    dispatch-fp8-rows-apart: refused {{.*}}(fp8_rows_square): M >= 2: at M = 8192 estimated
// SM90:    dispatch-fp8-rows: refused {{.*}}(fp8_rows_square): M >= 2: the epilogue has arith.mulf; the epilogue is nothing or a bias
// SM90:    dispatch-fp8-rows-apart: refused {{.*}}(fp8_rows_square): M >= 2: at M = 8192 estimated
// SM100:   dispatch-fp8-rows: refused {{.*}}(fp8_rows_square): M 2..64: the epilogue has arith.mulf; the epilogue is nothing or a bias
// SM100:   dispatch-fp8-rows-apart: refused {{.*}}(fp8_rows_square): M 2..64: at M = 64 estimated
// SM100:   dispatch: fired {{.*}}(fp8_rows_square): M >= 65 to cuBLAS (scaled_mm_rows, epilogue apart) by fp8-rows-apart
// GFX942:  dispatch-fp8-rows-apart: refused {{.*}}(fp8_rows_square): M >= 2: the target is hip:gfx942; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950)
// CPU:     dispatch-fp8-rows-apart: refused {{.*}}(fp8_rows_square): any M: the target is cpu; CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950)
func.func @fp8_rows_square(%x: !qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">> {qfuse.name = "fp8_rows_square"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    %r = arith.truncf %acc : f32 to bf16
    %x0 = arith.extf %r : bf16 to f32
    %s = arith.mulf %x0, %x0 : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// Whole numbers on CUDA, from 17 rows on, where that is asked for.
// SM80:    dispatch-int8: refused {{.*}}(int8): M 2..16: M is 2 to 16; M >= 17
// SM80:    dispatch: fired {{.*}}(int8): M >= 17 to cuBLAS (int_mm) by int8
// SM89:    dispatch-int8: refused {{.*}}(int8): M 2..16: M is 2 to 16; M >= 17
// SM89:    dispatch: fired {{.*}}(int8): M >= 17 to cuBLAS (int_mm) by int8
// SM90:    dispatch-int8: refused {{.*}}(int8): M 2..16: M is 2 to 16; M >= 17
// SM90:    dispatch: fired {{.*}}(int8): M >= 17 to cuBLAS (int_mm) by int8
// SM100:   dispatch-int8: refused {{.*}}(int8): M 2..16: M is 2 to 16; M >= 17
// SM100:   dispatch: fired {{.*}}(int8): M >= 17 to cuBLAS (int_mm) by int8
// GFX942:  dispatch-plain: refused {{.*}}(int8): M >= 2: the scheme is i8 per row by i8 per row, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(int8): any M: the scheme is i8 per row by i8 per row, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too
func.func @int8(%x: !qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">> {qfuse.name = "int8"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// K and N are multiples of 4.
// SM80:    dispatch-int8: refused {{.*}}(int8_ragged): M >= 2: N x K is 4098 x 2048; N and K are multiples of 4
// SM89:    dispatch-int8: refused {{.*}}(int8_ragged): M >= 2: N x K is 4098 x 2048; N and K are multiples of 4
// SM90:    dispatch-int8: refused {{.*}}(int8_ragged): M >= 2: N x K is 4098 x 2048; N and K are multiples of 4
// SM100:   dispatch-int8: refused {{.*}}(int8_ragged): M >= 2: N x K is 4098 x 2048; N and K are multiples of 4
// GFX942:  dispatch-plain: refused {{.*}}(int8_ragged): M >= 2: the scheme is i8 per row by i8 per row, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(int8_ragged): any M: the scheme is i8 per row by i8 per row, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too
func.func @int8_ragged(%x: !qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4098x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">> {qfuse.name = "int8_ragged"}) -> tensor<?x4098xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4098>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4098x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4098xbf16>
  return %y : tensor<?x4098xbf16>
}

// -----

// Without a bias.
// SM80:    dispatch-int8: refused {{.*}}(int8_bias): M >= 2: the epilogue has bias; there is no epilogue, no bias either
// SM89:    dispatch-int8: refused {{.*}}(int8_bias): M >= 2: the epilogue has bias; there is no epilogue, no bias either
// SM90:    dispatch-int8: refused {{.*}}(int8_bias): M >= 2: the epilogue has bias; there is no epilogue, no bias either
// SM100:   dispatch-int8: refused {{.*}}(int8_bias): M >= 2: the epilogue has bias; there is no epilogue, no bias either
// GFX942:  dispatch-plain: refused {{.*}}(int8_bias): M >= 2: the scheme is i8 per row by i8 per row, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(int8_bias): any M: the scheme is i8 per row by i8 per row, the result bf16 and the epilogue has bias; x and w are of one type, f16, bf16 or f32, and the result, too and there is no epilogue, no bias either
func.func @int8_bias(%x: !qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">> {qfuse.name = "int8_bias"}, %e: tensor<4096xbf16>) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w, %e) ({
  ^bb0(%acc: f32, %v: f32):
    %s = arith.addf %acc, %v : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, tensor<4096xbf16>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// With a result of 16 bits.
// SM80:    dispatch-int8: refused {{.*}}(int8_f32): M >= 2: it is f32; the result is bf16 or f16
// SM89:    dispatch-int8: refused {{.*}}(int8_f32): M >= 2: it is f32; the result is bf16 or f16
// SM90:    dispatch-int8: refused {{.*}}(int8_f32): M >= 2: it is f32; the result is bf16 or f16
// SM100:   dispatch-int8: refused {{.*}}(int8_f32): M >= 2: it is f32; the result is bf16 or f16
// GFX942:  dispatch-plain: refused {{.*}}(int8_f32): M >= 2: the scheme is i8 per row by i8 per row, the result f32; x and w are of one type, f16, bf16 or f32, and the result, too
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(int8_f32): any M: the scheme is i8 per row by i8 per row, the result f32; x and w are of one type, f16, bf16 or f32, and the result, too
func.func @int8_f32(%x: !qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">> {qfuse.name = "int8_f32"}) -> tensor<?x4096xf32> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xf32>
  return %y : tensor<?x4096xf32>
}

// -----

// Never where the dequantize is fused: INT4,
// SM80:    dispatch: fired {{.*}}(int4): M >= 2 to our kernel by fused-dequantize
// SM80:    dispatch-plain, int8: refused {{.*}}(int4): M >= 2: the scheme is bf16 by int4 group 32, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are i8 with one f32 scale for each row
// SM89:    dispatch: fired {{.*}}(int4): M >= 2 to our kernel by fused-dequantize
// SM89:    dispatch-plain, fp8-rows, int8: refused {{.*}}(int4): M >= 2: the scheme is bf16 by int4 group 32, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are E4M3 with one f32 scale for each row; or x and w are i8 with one f32 scale for each row
// SM90:    dispatch: fired {{.*}}(int4): M >= 2 to our kernel by fused-dequantize
// SM90:    dispatch-plain, fp8-rows, int8: refused {{.*}}(int4): M >= 2: the scheme is bf16 by int4 group 32, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are E4M3 with one f32 scale for each row; or x and w are i8 with one f32 scale for each row
// SM100:   dispatch: fired {{.*}}(int4): M >= 2 to our kernel by fused-dequantize
// SM100:   dispatch-plain, fp8-rows, int8: refused {{.*}}(int4): M >= 2: the scheme is bf16 by int4 group 32, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are E4M3 with one f32 scale for each row; or x and w are i8 with one f32 scale for each row
// GFX942:  dispatch: fired {{.*}}(int4): M >= 2 to our kernel by fused-dequantize
// GFX942:  dispatch-plain: refused {{.*}}(int4): M >= 2: the scheme is bf16 by int4 group 32, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too
// CPU:     dispatch: fired {{.*}}(int4): any M to our kernel by fused-dequantize
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(int4): any M: the scheme is bf16 by int4 group 32, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too
func.func @int4(%x: tensor<?x2048xbf16>, %w: !qfuse.qtensor<tensor<4096x2048xi4>, #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "none", "row_major">> {qfuse.name = "int4"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, !qfuse.qtensor<tensor<4096x2048xi4>, #qfuse.scheme<array<i64: 1, 32>, bf16, "int4", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// K-quants,
// SM80:    dispatch: fired {{.*}}(q4_k): M >= 2 to our kernel by fused-dequantize
// SM80:    dispatch-plain, int8: refused {{.*}}(q4_k): M >= 2: the scheme is q8_1 by q4_k, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are i8 with one f32 scale for each row
// SM89:    dispatch: fired {{.*}}(q4_k): M >= 2 to our kernel by fused-dequantize
// SM89:    dispatch-plain, fp8-rows, int8: refused {{.*}}(q4_k): M >= 2: the scheme is q8_1 by q4_k, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are E4M3 with one f32 scale for each row; or x and w are i8 with one f32 scale for each row
// SM90:    dispatch: fired {{.*}}(q4_k): M >= 2 to our kernel by fused-dequantize
// SM90:    dispatch-plain, fp8-rows, int8: refused {{.*}}(q4_k): M >= 2: the scheme is q8_1 by q4_k, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are E4M3 with one f32 scale for each row; or x and w are i8 with one f32 scale for each row
// SM100:   dispatch: fired {{.*}}(q4_k): M >= 2 to our kernel by fused-dequantize
// SM100:   dispatch-plain, fp8-rows, int8: refused {{.*}}(q4_k): M >= 2: the scheme is q8_1 by q4_k, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are E4M3 with one f32 scale for each row; or x and w are i8 with one f32 scale for each row
// GFX942:  dispatch: fired {{.*}}(q4_k): M >= 2 to our kernel by fused-dequantize
// GFX942:  dispatch-plain: refused {{.*}}(q4_k): M >= 2: the scheme is q8_1 by q4_k, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too
// CPU:     dispatch: fired {{.*}}(q4_k): any M to our kernel by fused-dequantize
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(q4_k): any M: the scheme is q8_1 by q4_k, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too
func.func @q4_k(%x: !qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>, %w: !qfuse.qtensor<tensor<4096x2048xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">> {qfuse.name = "q4_k"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2048xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>, !qfuse.qtensor<tensor<4096x2048xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// and codes of plain rows.
// SM80:    dispatch: fired {{.*}}(w8a16): M >= 2 to our kernel by fused-dequantize
// SM80:    dispatch-plain, int8: refused {{.*}}(w8a16): M >= 2: the scheme is bf16 by i8 per row, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are i8 with one f32 scale for each row
// SM89:    dispatch: fired {{.*}}(w8a16): M >= 2 to our kernel by fused-dequantize
// SM89:    dispatch-plain, fp8-rows, int8: refused {{.*}}(w8a16): M >= 2: the scheme is bf16 by i8 per row, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are E4M3 with one f32 scale for each row; or x and w are i8 with one f32 scale for each row
// SM90:    dispatch: fired {{.*}}(w8a16): M >= 2 to our kernel by fused-dequantize
// SM90:    dispatch-plain, fp8-rows, int8: refused {{.*}}(w8a16): M >= 2: the scheme is bf16 by i8 per row, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are E4M3 with one f32 scale for each row; or x and w are i8 with one f32 scale for each row
// SM100:   dispatch: fired {{.*}}(w8a16): M >= 2 to our kernel by fused-dequantize
// SM100:   dispatch-plain, fp8-rows, int8: refused {{.*}}(w8a16): M >= 2: the scheme is bf16 by i8 per row, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too; or x and w are E4M3 with one f32 scale for each row; or x and w are i8 with one f32 scale for each row
// GFX942:  dispatch: fired {{.*}}(w8a16): M >= 2 to our kernel by fused-dequantize
// GFX942:  dispatch-plain: refused {{.*}}(w8a16): M >= 2: the scheme is bf16 by i8 per row, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too
// CPU:     dispatch: fired {{.*}}(w8a16): any M to our kernel by fused-dequantize
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(w8a16): any M: the scheme is bf16 by i8 per row, the result bf16; x and w are of one type, f16, bf16 or f32, and the result, too
func.func @w8a16(%x: tensor<?x2048xbf16>, %w: !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">> {qfuse.name = "w8a16"}) -> tensor<?x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2048xbf16>, !qfuse.qtensor<tensor<4096x2048xi8>, #qfuse.scheme<array<i64: 1, 2048>, f32, "none", "none", "row_major">>) -> tensor<?x4096xbf16>
  return %y : tensor<?x4096xbf16>
}

// -----

// Unquantized experts on architecture 9.0 and later, and on hip.
// SM80:    dispatch-plain-experts: refused {{.*}}(experts): M >= 3: the target is cuda:sm_80; CUDA of architecture 9.0 or later, or hip
// SM89:    dispatch-plain-experts: refused {{.*}}(experts): M >= 3: the target is cuda:sm_89; CUDA of architecture 9.0 or later, or hip
// SM90:    dispatch: fired {{.*}}(experts): M >= 3 to cuBLAS (grouped_mm) by plain-experts
// SM100:   dispatch: fired {{.*}}(experts): M >= 3 to cuBLAS (grouped_mm) by plain-experts
// GFX942:  dispatch: fired {{.*}}(experts): M >= 3 to hipBLAS (grouped_mm) by plain-experts
// CPU:     dispatch-fp8-rows-of-experts: refused {{.*}}(experts): any M: the target is cpu and the scheme is bf16 by bf16; CUDA of architecture 9.x, with cublasLt 12.9 or later and x and w are E4M3 with one f32 scale for each row
func.func @experts(%x: tensor<?x2x512xbf16>, %w: tensor<8x256x512xbf16> {qfuse.name = "experts"}, %indptr: tensor<9xi32>) -> tensor<?x2x256xbf16> {
  %y = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2x512xbf16>, tensor<8x256x512xbf16>, tensor<9xi32>) -> tensor<?x2x256xbf16>
  return %y : tensor<?x2x256xbf16>
}

// -----

// Not where rows are taken from their tokens.
// SM80:    dispatch-plain-experts: refused {{.*}}(experts_gathered): M >= 3: the target is cuda:sm_80 and they are taken from their tokens, for which a call needs a copy; CUDA of architecture 9.0 or later, or hip and the rows of x lie sorted by expert
// SM89:    dispatch-plain-experts: refused {{.*}}(experts_gathered): M >= 3: the target is cuda:sm_89 and they are taken from their tokens, for which a call needs a copy; CUDA of architecture 9.0 or later, or hip and the rows of x lie sorted by expert
// SM90:    dispatch-plain-experts: refused {{.*}}(experts_gathered): M >= 3: they are taken from their tokens, for which a call needs a copy; the rows of x lie sorted by expert
// SM100:   dispatch-plain-experts: refused {{.*}}(experts_gathered): M >= 3: they are taken from their tokens, for which a call needs a copy; the rows of x lie sorted by expert
// GFX942:  dispatch-plain-experts: refused {{.*}}(experts_gathered): M >= 3: they are taken from their tokens, for which a call needs a copy; the rows of x lie sorted by expert
// CPU:     dispatch-fp8-rows-of-experts: refused {{.*}}(experts_gathered): any M: the target is cpu and the scheme is bf16 by bf16 and they are taken from their tokens, for which a call needs a copy; CUDA of architecture 9.x, with cublasLt 12.9 or later and x and w are E4M3 with one f32 scale for each row and the rows of x lie sorted by expert
func.func @experts_gathered(%x: tensor<?x512xbf16>, %w: tensor<8x256x512xbf16> {qfuse.name = "experts_gathered"}, %indptr: tensor<9xi32>, %tokens: tensor<?x2xi32>) -> tensor<?x2x256xbf16> {
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x512xbf16>, tensor<8x256x512xbf16>, tensor<9xi32>, tensor<?x2xi32>) -> tensor<?x2x256xbf16>
  return %y : tensor<?x2x256xbf16>
}

// -----

// N and K are multiples of 8.
// SM80:    dispatch-plain-experts: refused {{.*}}(experts_ragged): M >= 3: the target is cuda:sm_80 and N x K is 260 x 512; CUDA of architecture 9.0 or later, or hip and N and K are multiples of 8: rows of 16 bytes
// SM89:    dispatch-plain-experts: refused {{.*}}(experts_ragged): M >= 3: the target is cuda:sm_89 and N x K is 260 x 512; CUDA of architecture 9.0 or later, or hip and N and K are multiples of 8: rows of 16 bytes
// SM90:    dispatch-plain-experts: refused {{.*}}(experts_ragged): M >= 3: N x K is 260 x 512; N and K are multiples of 8: rows of 16 bytes
// SM100:   dispatch-plain-experts: refused {{.*}}(experts_ragged): M >= 3: N x K is 260 x 512; N and K are multiples of 8: rows of 16 bytes
// GFX942:  dispatch-plain-experts: refused {{.*}}(experts_ragged): M >= 3: N x K is 260 x 512; N and K are multiples of 8: rows of 16 bytes
// CPU:     dispatch-fp8-rows-of-experts: refused {{.*}}(experts_ragged): any M: the target is cpu and the scheme is bf16 by bf16 and N x K is 260 x 512; CUDA of architecture 9.x, with cublasLt 12.9 or later and x and w are E4M3 with one f32 scale for each row and N and K are multiples of 16
func.func @experts_ragged(%x: tensor<?x2x512xbf16>, %w: tensor<8x260x512xbf16> {qfuse.name = "experts_ragged"}, %indptr: tensor<9xi32>) -> tensor<?x2x260xbf16> {
  %y = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 260>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2x512xbf16>, tensor<8x260x512xbf16>, tensor<9xi32>) -> tensor<?x2x260xbf16>
  return %y : tensor<?x2x260xbf16>
}

// -----

// In bf16.
// SM80:    dispatch-plain-experts: refused {{.*}}(experts_f16): M >= 3: the target is cuda:sm_80 and the scheme is f16 by f16, the result f16; CUDA of architecture 9.0 or later, or hip and x, w and the result are bf16
// SM89:    dispatch-plain-experts: refused {{.*}}(experts_f16): M >= 3: the target is cuda:sm_89 and the scheme is f16 by f16, the result f16; CUDA of architecture 9.0 or later, or hip and x, w and the result are bf16
// SM90:    dispatch-plain-experts: refused {{.*}}(experts_f16): M >= 3: the scheme is f16 by f16, the result f16; x, w and the result are bf16
// SM100:   dispatch-plain-experts: refused {{.*}}(experts_f16): M >= 3: the scheme is f16 by f16, the result f16; x, w and the result are bf16
// GFX942:  dispatch-plain-experts: refused {{.*}}(experts_f16): M >= 3: the scheme is f16 by f16, the result f16; x, w and the result are bf16
// CPU:     dispatch-fp8-rows-of-experts: refused {{.*}}(experts_f16): any M: the target is cpu and the scheme is f16 by f16 and it is f16; CUDA of architecture 9.x, with cublasLt 12.9 or later and x and w are E4M3 with one f32 scale for each row and the result is bf16
func.func @experts_f16(%x: tensor<?x2x512xf16>, %w: tensor<8x256x512xf16> {qfuse.name = "experts_f16"}, %indptr: tensor<9xi32>) -> tensor<?x2x256xf16> {
  %y = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2x512xf16>, tensor<8x256x512xf16>, tensor<9xi32>) -> tensor<?x2x256xf16>
  return %y : tensor<?x2x256xf16>
}

// -----

// With no epilogue.
// SM80:    dispatch-plain-experts: refused {{.*}}(experts_square): M >= 3: the target is cuda:sm_80 and the epilogue has arith.mulf; CUDA of architecture 9.0 or later, or hip and there is no epilogue, no bias either
// SM89:    dispatch-plain-experts: refused {{.*}}(experts_square): M >= 3: the target is cuda:sm_89 and the epilogue has arith.mulf; CUDA of architecture 9.0 or later, or hip and there is no epilogue, no bias either
// SM90:    dispatch-plain-experts: refused {{.*}}(experts_square): M >= 3: the epilogue has arith.mulf; there is no epilogue, no bias either
// SM100:   dispatch-plain-experts: refused {{.*}}(experts_square): M >= 3: the epilogue has arith.mulf; there is no epilogue, no bias either
// GFX942:  dispatch-plain-experts: refused {{.*}}(experts_square): M >= 3: the epilogue has arith.mulf; there is no epilogue, no bias either
// CPU:     dispatch-fp8-rows-of-experts: refused {{.*}}(experts_square): any M: the target is cpu and the scheme is bf16 by bf16 and the epilogue has arith.mulf; CUDA of architecture 9.x, with cublasLt 12.9 or later and x and w are E4M3 with one f32 scale for each row and there is no epilogue, no bias either
func.func @experts_square(%x: tensor<?x2x512xbf16>, %w: tensor<8x256x512xbf16> {qfuse.name = "experts_square"}, %indptr: tensor<9xi32>) -> tensor<?x2x256xbf16> {
  %y = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    %r = arith.truncf %acc : f32 to bf16
    %x0 = arith.extf %r : bf16 to f32
    %s = arith.mulf %x0, %x0 : f32
    "qfuse.yield"(%s) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x2x512xbf16>, tensor<8x256x512xbf16>, tensor<9xi32>) -> tensor<?x2x256xbf16>
  return %y : tensor<?x2x256xbf16>
}

// -----

// FP8 per row of experts on architecture 9.x.
// SM80:    dispatch-fp8-rows-of-experts: refused {{.*}}(experts_fp8): M >= 3: the target is cuda:sm_80; CUDA of architecture 9.x, with cublasLt 12.9 or later
// SM89:    dispatch-fp8-rows-of-experts: refused {{.*}}(experts_fp8): M >= 3: the target is cuda:sm_89; CUDA of architecture 9.x, with cublasLt 12.9 or later
// SM90:    dispatch: fired {{.*}}(experts_fp8): M >= 3 to cuBLAS (scaled_grouped_mm) by fp8-rows-of-experts
// SM100:   dispatch-fp8-rows-of-experts: refused {{.*}}(experts_fp8): M >= 3: the target is cuda:sm_100; CUDA of architecture 9.x, with cublasLt 12.9 or later
// GFX942:  dispatch-fp8-rows-of-experts: refused {{.*}}(experts_fp8): M >= 3: the target is hip:gfx942; CUDA of architecture 9.x, with cublasLt 12.9 or later
// CPU:     dispatch-fp8-rows-of-experts: refused {{.*}}(experts_fp8): any M: the target is cpu; CUDA of architecture 9.x, with cublasLt 12.9 or later
func.func @experts_fp8(%x: !qfuse.qtensor<tensor<?x2x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<8x256x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">> {qfuse.name = "experts_fp8"}, %indptr: tensor<9xi32>) -> tensor<?x2x256xbf16> {
  %y = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<8x256x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>, tensor<9xi32>) -> tensor<?x2x256xbf16>
  return %y : tensor<?x2x256xbf16>
}

// -----

// With a bf16 result.
// SM80:    dispatch-fp8-rows-of-experts: refused {{.*}}(experts_fp8_f16): M >= 3: the target is cuda:sm_80 and it is f16; CUDA of architecture 9.x, with cublasLt 12.9 or later and the result is bf16
// SM89:    dispatch-fp8-rows-of-experts: refused {{.*}}(experts_fp8_f16): M >= 3: the target is cuda:sm_89 and it is f16; CUDA of architecture 9.x, with cublasLt 12.9 or later and the result is bf16
// SM90:    dispatch-fp8-rows-of-experts: refused {{.*}}(experts_fp8_f16): M >= 3: it is f16; the result is bf16
// SM100:   dispatch-fp8-rows-of-experts: refused {{.*}}(experts_fp8_f16): M >= 3: the target is cuda:sm_100 and it is f16; CUDA of architecture 9.x, with cublasLt 12.9 or later and the result is bf16
// GFX942:  dispatch-fp8-rows-of-experts: refused {{.*}}(experts_fp8_f16): M >= 3: the target is hip:gfx942 and it is f16; CUDA of architecture 9.x, with cublasLt 12.9 or later and the result is bf16
// CPU:     dispatch-fp8-rows-of-experts: refused {{.*}}(experts_fp8_f16): any M: the target is cpu and it is f16; CUDA of architecture 9.x, with cublasLt 12.9 or later and the result is bf16
func.func @experts_fp8_f16(%x: !qfuse.qtensor<tensor<?x2x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>, %w: !qfuse.qtensor<tensor<8x256x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">> {qfuse.name = "experts_fp8_f16"}, %indptr: tensor<9xi32>) -> tensor<?x2x256xf16> {
  %y = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qfuse.qtensor<tensor<?x2x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>, !qfuse.qtensor<tensor<8x256x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">>, tensor<9xi32>) -> tensor<?x2x256xf16>
  return %y : tensor<?x2x256xf16>
}

// -----

// One row is one row, whatever the function is called,
// SM80:    dispatch: fired {{.*}}(one_row): M = 1 to our kernel by single-row
// SM80:    dispatch-plain: refused {{.*}}(one_row): M = 1: M is 1; M >= 2
// SM89:    dispatch: fired {{.*}}(one_row): M = 1 to our kernel by single-row
// SM89:    dispatch-plain: refused {{.*}}(one_row): M = 1: M is 1; M >= 2
// SM90:    dispatch: fired {{.*}}(one_row): M = 1 to our kernel by single-row
// SM90:    dispatch-plain: refused {{.*}}(one_row): M = 1: M is 1; M >= 2
// SM100:   dispatch: fired {{.*}}(one_row): M = 1 to our kernel by single-row
// SM100:   dispatch-plain: refused {{.*}}(one_row): M = 1: M is 1; M >= 2
// GFX942:  dispatch: fired {{.*}}(one_row): M = 1 to our kernel by single-row
// GFX942:  dispatch-plain: refused {{.*}}(one_row): M = 1: M is 1; M >= 2
func.func @one_row(%x: tensor<1x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "one_row"}) -> tensor<1x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<1x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<1x4096xbf16>
  return %y : tensor<1x4096xbf16>
}

// -----

// and sixteen are sixteen.
// SM80:    dispatch: fired {{.*}}(sixteen_rows): M = 16 to cuBLAS (mm) by plain
// SM89:    dispatch: fired {{.*}}(sixteen_rows): M = 16 to cuBLAS (mm) by plain
// SM90:    dispatch: fired {{.*}}(sixteen_rows): M = 16 to cuBLAS (mm) by plain
// SM100:   dispatch: fired {{.*}}(sixteen_rows): M = 16 to cuBLAS (mm) by plain
// GFX942:  dispatch: fired {{.*}}(sixteen_rows): M = 16 to hipBLAS (mm) by plain
// CPU:     dispatch-plain-on-the-cpu: refused {{.*}}(sixteen_rows): M = 16: nothing was measured of it (qfuse tune); the call is measured to be faster
func.func @sixteen_rows(%x: tensor<16x2048xbf16>, %w: tensor<4096x2048xbf16> {qfuse.name = "sixteen_rows"}) -> tensor<16x4096xbf16> {
  %y = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 4096>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<16x2048xbf16>, tensor<4096x2048xbf16>) -> tensor<16x4096xbf16>
  return %y : tensor<16x4096xbf16>
}
