// RUN: qfuse-opt --qfuse-convert-to-triton=target=cuda:sm_90 --split-input-file %s | filecheck %s
// RUN: not qfuse-opt --qfuse-convert-to-triton=target=cuda:sm_91 --split-input-file %s 2>&1 | filecheck %s --check-prefix=ARCH

// ARCH: qfuse-opt: error: unknown GPU target 'cuda:sm_91'; the nearest supported one is 'cuda:sm_90'

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<512x512xf8E4M3FN>, #weight>

// The host program calls kernels; two norms that compute the same share one. What prepares weights stays.
// CHECK-LABEL: func.func @main
// CHECK-NEXT:    %[[W:.+]] = "qfuse.pack"
// CHECK-NEXT:    %[[A:.+]] = call @rms_norm_0
// CHECK-NEXT:    %[[B:.+]] = call @rms_norm_0(%[[A]]
// CHECK-NEXT:    %[[Q:.+]] = call @quantize_0(%[[B]]
// CHECK-NEXT:    %[[Y:.+]] = call @matmul_0(%[[Q]], %[[W]])
// CHECK-NEXT:    return %[[Y]]
func.func @main(%x: !x, %n: tensor<512xbf16>, %d: tensor<512x512xf8E4M3FN>, %s: tensor<4x4xf32>) -> !x {
  %w = "qfuse.pack"(%d, %s) : (tensor<512x512xf8E4M3FN>, tensor<4x4xf32>) -> !w
  %0 = "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  %1 = "qfuse.rms_norm"(%0, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  %2 = "qfuse.quantize"(%1) : (!x) -> !xq
  %3 = "qfuse.matmul"(%2, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !x
  return %3 : !x
}

// A launch is a module with one tt function, and what starting it takes; a kernel is a declaration that
// says which launches serve which numbers of rows.
// CHECK:       module @rms_norm_0_launch attributes {qfuse.grid = {{{.*}}rows = {{[0-9]+}}{{.*}}}, qfuse.options = {num_stages = {{[0-9]+}} : i64, num_warps = {{[0-9]+}} : i64}, qfuse.parameters = ["operand 0", "operand 1", "result 0"]}
// CHECK-NEXT:    "tt.func"()
// CHECK:       func.func private @rms_norm_0(tensor<?x512xbf16>, tensor<512xbf16>) -> tensor<?x512xbf16> attributes {qfuse.kernel, qfuse.parameters = ["operand 0", "operand 1", "result 0"], qfuse.target = "cuda:sm_90", qfuse.variants = [{{{.*}}first_m = 1 : i64, launches = [@rms_norm_0_launch]
// CHECK:       module @quantize_0_launch attributes {{.*}}qfuse.parameters = ["operand 0", "result 0", "result 0 scale"]}
// CHECK:       module @matmul_0_{{.*}}_launch
// CHECK:         tt.dot
// CHECK:         tt.warp_specialize
// CHECK:       func.func private @matmul_0{{.*}}qfuse.parameters = ["operand 0", "operand 0 scale", "operand 1", "operand 1 scale", "result 0"]

// -----

// Nothing to do: a module without computations, and kernels that have been lowered.
// CHECK-LABEL: module {
// CHECK-NEXT:    func.func private @done(tensor<?x8xf32>) -> tensor<?x8xf32> attributes {qfuse.kernel, qfuse.target = "cuda:sm_90"}
// CHECK-NEXT:    func.func @again
// CHECK-NEXT:      call @done
// CHECK-NEXT:      return
// CHECK-NOT:     module @
func.func private @done(tensor<?x8xf32>) -> tensor<?x8xf32> attributes {qfuse.kernel, qfuse.target = "cuda:sm_90"}
func.func @again(%x: tensor<?x8xf32>) -> tensor<?x8xf32> {
  %0 = call @done(%x) : (tensor<?x8xf32>) -> tensor<?x8xf32>
  return %0 : tensor<?x8xf32>
}
