// RUN: qfuse-opt --qfuse-convert-to-triton=target=cuda:sm_90 --qfuse-triton-to-binary %s | filecheck %s
// RUN: qfuse-opt --qfuse-convert-to-triton=target=hip:gfx942 --qfuse-triton-to-binary %s | filecheck %s --check-prefix=HIP
// RUN: qfuse-opt --qfuse-convert-to-triton --qfuse-triton-to-binary --qfuse-triton-to-binary %s | filecheck %s
// RUN: qfuse-opt --qfuse-triton-to-binary %s | filecheck %s --check-prefix=NONE

// CHECK:      func.func @main
// CHECK-NEXT:   call @silu_0
// CHECK:      gpu.binary @silu_0_launch {qfuse.grid = {{{.*}}}, qfuse.parameters = ["operand 0", "result 0"]} [#gpu.object<#nvvm.target<chip = "sm_90">, properties = {num_warps = {{[0-9]+}} : i64, program_scratch = 0 : i64, shared_bytes = 0 : i64}, bin = "\7FELF
// CHECK-NOT:  tt.func
// CHECK:      func.func private @silu_0{{.*}}qfuse.target = "cuda:sm_90"{{.*}}launches = [@silu_0_launch]
// HIP:        gpu.binary @silu_0_launch {{.*}}[#gpu.object<#rocdl.target<chip = "gfx942">{{.*}}bin = "\7FELF

// Without lowered kernels there is nothing to do.
// NONE:       "qfuse.silu"
// NONE-NOT:   gpu.binary
func.func @main(%x: tensor<?x512xbf16>) -> tensor<?x512xbf16> {
  %0 = "qfuse.silu"(%x) : (tensor<?x512xbf16>) -> tensor<?x512xbf16>
  return %0 : tensor<?x512xbf16>
}
