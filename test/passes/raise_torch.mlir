// RUN: qfuse-opt --qfuse-raise-torch --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-raise-torch --split-input-file --verify-diagnostics %s

// A quantized linear with bias: pack, product, add. The scheme of x waits for qfuse-expand-quantize.
// CHECK-LABEL: func.func @linear_with_bias
// CHECK:         %[[B:.+]] = torch_c.to_builtin_tensor %arg3
// CHECK:         %[[W:.+]] = "qfuse.pack"
// CHECK-SAME:      #qfuse.scheme<array<i64: 128, 128>, f32
// CHECK:         %[[X:.+]] = torch_c.to_builtin_tensor %arg0
// CHECK:         %[[Y:.+]] = "qfuse.matmul"(%[[X]], %[[W]])
// CHECK:         qfuse.input_scheme = #qfuse.scheme<array<i64: 1, 128>, f32
// CHECK:         "qfuse.add"(%[[Y]], %[[B]])
// CHECK-NOT:     torch.operator
func.func @linear_with_bias(%x: !torch.vtensor<[1,?,512],bf16>, %w: !torch.vtensor<[1400,512],f8E4M3FN>, %s: !torch.vtensor<[11,4],f32>, %b: !torch.vtensor<[1400],bf16>) -> !torch.vtensor<[1,?,1400],bf16> {
  %none = torch.constant.none
  %packing = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  // expected-remark @+1 {{quantized-linear: fired at torch.operator}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %b, %wb, %xb, %packing, %dynamic, %none, %none) : (!torch.vtensor<[1,?,512],bf16>, !torch.vtensor<[1400,512],f8E4M3FN>, !torch.vtensor<[11,4],f32>, !torch.vtensor<[1400],bf16>, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[1,?,1400],bf16>
  return %y : !torch.vtensor<[1,?,1400],bf16>
}

// -----

// No input block: weight only, and nothing says that x is to be quantized.
// CHECK-LABEL: func.func @weight_only
// CHECK:         "qfuse.matmul"
// CHECK-NOT:     qfuse.input_scheme
func.func @weight_only(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[1400,512],f8E4M3FN>, %s: !torch.vtensor<[11,4],f32>) -> !torch.vtensor<[?,1400],bf16> {
  %packing = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %none = torch.constant.none
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct : () -> !torch.list<int>
  // expected-remark @+1 {{quantized-linear: fired at torch.operator}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %dynamic, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[1400,512],f8E4M3FN>, !torch.vtensor<[11,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,1400],bf16>
  return %y : !torch.vtensor<[?,1400],bf16>
}

// -----

// A block that is only known at run time cannot be part of a type.
// CHECK-LABEL: func.func @block_of_unknown_size
// CHECK:         torch.operator
func.func @block_of_unknown_size(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[1400,512],f8E4M3FN>, %s: !torch.vtensor<[11,4],f32>, %n: !torch.int) -> !torch.vtensor<[?,1400],bf16> {
  %packing = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %none = torch.constant.none
  %wb = torch.prim.ListConstruct %n, %n : (!torch.int, !torch.int) -> !torch.list<int>
  // expected-remark @+1 {{quantized-linear: refused at torch.operator: the block shape or the format is not a constant}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %wb, %packing, %dynamic, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[1400,512],f8E4M3FN>, !torch.vtensor<[11,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,1400],bf16>
  return %y : !torch.vtensor<[?,1400],bf16>
}

// -----

// RMSNorm as Llama and Qwen write it: the normed value is rounded before the weight.
// CHECK-LABEL: func.func @spelled_out_norm
// CHECK:         "qfuse.rms_norm"
// CHECK-SAME:      eps = {{(9.99.+E-7|1.0+e-06)}} : f64, offset = 0.000000e+00 : f64
// CHECK-SAME:      rounding = "before"
// CHECK-NOT:     torch.aten.rsqrt
func.func @spelled_out_norm(%x: !torch.vtensor<[1,?,512],bf16>, %w: !torch.vtensor<[512],bf16>) -> !torch.vtensor<[1,?,512],bf16> {
  %false = torch.constant.bool false
  %true = torch.constant.bool true
  %none = torch.constant.none
  %f32 = torch.constant.int 6
  %bf16 = torch.constant.int 15
  %int2 = torch.constant.int 2
  %int1 = torch.constant.int 1
  %int-1 = torch.constant.int -1
  %eps = torch.constant.float 1.0E-6
  %dims = torch.prim.ListConstruct %int-1 : (!torch.int) -> !torch.list<int>
  %0 = torch.aten.to.dtype %x, %f32, %false, %false, %none : !torch.vtensor<[1,?,512],bf16>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,?,512],f32>
  %1 = torch.aten.pow.Tensor_Scalar %0, %int2 : !torch.vtensor<[1,?,512],f32>, !torch.int -> !torch.vtensor<[1,?,512],f32>
  %2 = torch.aten.mean.dim %1, %dims, %true, %none : !torch.vtensor<[1,?,512],f32>, !torch.list<int>, !torch.bool, !torch.none -> !torch.vtensor<[1,?,1],f32>
  %3 = torch.aten.add.Scalar %2, %eps, %int1 : !torch.vtensor<[1,?,1],f32>, !torch.float, !torch.int -> !torch.vtensor<[1,?,1],f32>
  %4 = torch.aten.rsqrt %3 : !torch.vtensor<[1,?,1],f32> -> !torch.vtensor<[1,?,1],f32>
  %5 = torch.aten.mul.Tensor %0, %4 : !torch.vtensor<[1,?,512],f32>, !torch.vtensor<[1,?,1],f32> -> !torch.vtensor<[1,?,512],f32>
  // `aten._to_copy`, as AOTAutograd writes the cast back.
  %6 = torch.aten._to_copy %5, %bf16, %none, %none, %none, %false, %none : !torch.vtensor<[1,?,512],f32>, !torch.int, !torch.none, !torch.none, !torch.none, !torch.bool, !torch.none -> !torch.vtensor<[1,?,512],bf16>
  // expected-remark @+1 {{rms-norm: fired at torch.aten.mul.Tensor}}
  %7 = torch.aten.mul.Tensor %w, %6 : !torch.vtensor<[512],bf16>, !torch.vtensor<[1,?,512],bf16> -> !torch.vtensor<[1,?,512],bf16>
  return %7 : !torch.vtensor<[1,?,512],bf16>
}

// -----

// The mean over another dimension is another norm.
// CHECK-LABEL: func.func @norm_of_another_dimension
// CHECK:         torch.aten.rsqrt
// CHECK-NOT:     qfuse
func.func @norm_of_another_dimension(%x: !torch.vtensor<[4,512],f32>, %w: !torch.vtensor<[512],f32>) -> !torch.vtensor<[4,512],f32> {
  %true = torch.constant.bool true
  %none = torch.constant.none
  %int2 = torch.constant.int 2
  %int1 = torch.constant.int 1
  %int0 = torch.constant.int 0
  %eps = torch.constant.float 1.0E-6
  %dims = torch.prim.ListConstruct %int0 : (!torch.int) -> !torch.list<int>
  %1 = torch.aten.pow.Tensor_Scalar %x, %int2 : !torch.vtensor<[4,512],f32>, !torch.int -> !torch.vtensor<[4,512],f32>
  %2 = torch.aten.mean.dim %1, %dims, %true, %none : !torch.vtensor<[4,512],f32>, !torch.list<int>, !torch.bool, !torch.none -> !torch.vtensor<[1,512],f32>
  %3 = torch.aten.add.Scalar %2, %eps, %int1 : !torch.vtensor<[1,512],f32>, !torch.float, !torch.int -> !torch.vtensor<[1,512],f32>
  %4 = torch.aten.rsqrt %3 : !torch.vtensor<[1,512],f32> -> !torch.vtensor<[1,512],f32>
  %5 = torch.aten.mul.Tensor %x, %4 : !torch.vtensor<[4,512],f32>, !torch.vtensor<[1,512],f32> -> !torch.vtensor<[4,512],f32>
  %7 = torch.aten.mul.Tensor %5, %w : !torch.vtensor<[4,512],f32>, !torch.vtensor<[512],f32> -> !torch.vtensor<[4,512],f32>
  return %7 : !torch.vtensor<[4,512],f32>
}

// -----

// A norm computed in bf16 throughout is not what qfuse.rms_norm computes.
// CHECK-LABEL: func.func @norm_in_bf16
// CHECK:         torch.aten.rsqrt
// CHECK-NOT:     qfuse
func.func @norm_in_bf16(%x: !torch.vtensor<[4,512],bf16>, %w: !torch.vtensor<[512],bf16>) -> !torch.vtensor<[4,512],bf16> {
  %true = torch.constant.bool true
  %none = torch.constant.none
  %int2 = torch.constant.int 2
  %int1 = torch.constant.int 1
  %int-1 = torch.constant.int -1
  %eps = torch.constant.float 1.0E-6
  %dims = torch.prim.ListConstruct %int-1 : (!torch.int) -> !torch.list<int>
  %1 = torch.aten.pow.Tensor_Scalar %x, %int2 : !torch.vtensor<[4,512],bf16>, !torch.int -> !torch.vtensor<[4,512],bf16>
  %2 = torch.aten.mean.dim %1, %dims, %true, %none : !torch.vtensor<[4,512],bf16>, !torch.list<int>, !torch.bool, !torch.none -> !torch.vtensor<[4,1],bf16>
  %3 = torch.aten.add.Scalar %2, %eps, %int1 : !torch.vtensor<[4,1],bf16>, !torch.float, !torch.int -> !torch.vtensor<[4,1],bf16>
  %4 = torch.aten.rsqrt %3 : !torch.vtensor<[4,1],bf16> -> !torch.vtensor<[4,1],bf16>
  %5 = torch.aten.mul.Tensor %x, %4 : !torch.vtensor<[4,512],bf16>, !torch.vtensor<[4,1],bf16> -> !torch.vtensor<[4,512],bf16>
  // expected-remark @+1 {{rms-norm: refused at torch.aten.mul.Tensor: the norm is computed in bf16, qfuse.rms_norm in f32; cast the input to f32 first}}
  %7 = torch.aten.mul.Tensor %5, %w : !torch.vtensor<[4,512],bf16>, !torch.vtensor<[512],bf16> -> !torch.vtensor<[4,512],bf16>
  return %7 : !torch.vtensor<[4,512],bf16>
}

// -----

// torch's own rms_norm multiplies by the weight before it rounds.
// CHECK-LABEL: func.func @torch_rms_norm
// CHECK:         "qfuse.rms_norm"
// CHECK-SAME:      rounding = "after"
func.func @torch_rms_norm(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[512],bf16>) -> !torch.vtensor<[?,512],bf16> {
  %int512 = torch.constant.int 512
  %eps = torch.constant.float 1.0E-5
  %shape = torch.prim.ListConstruct %int512 : (!torch.int) -> !torch.list<int>
  // expected-remark @+1 {{rms-norm: fired at torch.aten.rms_norm}}
  %y = torch.aten.rms_norm %x, %shape, %w, %eps : !torch.vtensor<[?,512],bf16>, !torch.list<int>, !torch.vtensor<[512],bf16>, !torch.float -> !torch.vtensor<[?,512],bf16>
  return %y : !torch.vtensor<[?,512],bf16>
}

// -----

// torch would give a result of the wider type.
// CHECK-LABEL: func.func @weight_of_a_wider_type
// CHECK-NOT:     qfuse.rms_norm
func.func @weight_of_a_wider_type(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[512],f32>) -> !torch.vtensor<[?,512],f32> {
  %int512 = torch.constant.int 512
  %eps = torch.constant.float 1.0E-5
  %shape = torch.prim.ListConstruct %int512 : (!torch.int) -> !torch.list<int>
  // expected-remark @+1 {{rms-norm: refused at torch.aten.rms_norm: the result is tensor<?x512xf32> for an input tensor<?x512xbf16> and weight tensor<512xf32>; give the weight the input's element type}}
  %y = torch.aten.rms_norm %x, %shape, %w, %eps : !torch.vtensor<[?,512],bf16>, !torch.list<int>, !torch.vtensor<[512],f32>, !torch.float -> !torch.vtensor<[?,512],f32>
  return %y : !torch.vtensor<[?,512],f32>
}

// -----

// silu(gate) * up next to a norm becomes a GLU; the residual add becomes qfuse's, too.
// CHECK-LABEL: func.func @glu_and_residual
// CHECK:         "qfuse.rms_norm"
// CHECK:         %[[G:.+]] = "qfuse.glu"(%{{.*}}, %{{.*}}) {act = "silu"
// CHECK:         "qfuse.add"(%{{.*}}, %[[G]])
func.func @glu_and_residual(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[512],bf16>) -> !torch.vtensor<[?,512],bf16> {
  %int512 = torch.constant.int 512
  %int1 = torch.constant.int 1
  %eps = torch.constant.float 1.0E-5
  %shape = torch.prim.ListConstruct %int512 : (!torch.int) -> !torch.list<int>
  // expected-remark @+1 {{rms-norm: fired}}
  %y = torch.aten.rms_norm %x, %shape, %w, %eps : !torch.vtensor<[?,512],bf16>, !torch.list<int>, !torch.vtensor<[512],bf16>, !torch.float -> !torch.vtensor<[?,512],bf16>
  %a = torch.aten.silu %y : !torch.vtensor<[?,512],bf16> -> !torch.vtensor<[?,512],bf16>
  // expected-remark @+1 {{glu: fired at qfuse.mul}}
  %b = torch.aten.mul.Tensor %a, %y : !torch.vtensor<[?,512],bf16>, !torch.vtensor<[?,512],bf16> -> !torch.vtensor<[?,512],bf16>
  %c = torch.aten.add.Tensor %x, %b, %int1 : !torch.vtensor<[?,512],bf16>, !torch.vtensor<[?,512],bf16>, !torch.int -> !torch.vtensor<[?,512],bf16>
  return %c : !torch.vtensor<[?,512],bf16>
}

// -----

// The activation is read twice: no GLU, and each part is an operation of its own.
// CHECK-LABEL: func.func @activation_read_twice
// CHECK:         "qfuse.gelu_tanh"
// CHECK:         "qfuse.mul"
// CHECK-NOT:     "qfuse.glu"
func.func @activation_read_twice(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[512],bf16>) -> (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[?,512],bf16>) {
  %int512 = torch.constant.int 512
  %tanh = torch.constant.str "tanh"
  %eps = torch.constant.float 1.0E-5
  %shape = torch.prim.ListConstruct %int512 : (!torch.int) -> !torch.list<int>
  // expected-remark @+1 {{rms-norm: fired}}
  %y = torch.aten.rms_norm %x, %shape, %w, %eps : !torch.vtensor<[?,512],bf16>, !torch.list<int>, !torch.vtensor<[512],bf16>, !torch.float -> !torch.vtensor<[?,512],bf16>
  // expected-remark @+1 {{glu: refused at qfuse.gelu_tanh: the activation has 2 readers}}
  %a = torch.aten.gelu %y, %tanh : !torch.vtensor<[?,512],bf16>, !torch.str -> !torch.vtensor<[?,512],bf16>
  %b = torch.aten.mul.Tensor %a, %y : !torch.vtensor<[?,512],bf16>, !torch.vtensor<[?,512],bf16> -> !torch.vtensor<[?,512],bf16>
  return %a, %b : !torch.vtensor<[?,512],bf16>, !torch.vtensor<[?,512],bf16>
}

// -----

// Element-wise operations away from qfuse's stay on torch, and so do scaled adds and integers.
// CHECK-LABEL: func.func @left_to_torch
// CHECK-NOT:     qfuse
// CHECK:         return
func.func @left_to_torch(%x: !torch.vtensor<[?,512],bf16>, %i: !torch.vtensor<[?],si64>) -> (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[?],si64>) {
  %int2 = torch.constant.int 2
  %a = torch.aten.silu %x : !torch.vtensor<[?,512],bf16> -> !torch.vtensor<[?,512],bf16>
  %b = torch.aten.add.Tensor %a, %x, %int2 : !torch.vtensor<[?,512],bf16>, !torch.vtensor<[?,512],bf16>, !torch.int -> !torch.vtensor<[?,512],bf16>
  %c = torch.aten.mul.Tensor %i, %i : !torch.vtensor<[?],si64>, !torch.vtensor<[?],si64> -> !torch.vtensor<[?],si64>
  return %b, %c : !torch.vtensor<[?,512],bf16>, !torch.vtensor<[?],si64>
}

// -----

// torch rounds a scalar tensor to bf16 before it multiplies; qfuse.mul would not.
// CHECK-LABEL: func.func @scalar_of_another_type
// CHECK:         torch.aten.mul.Tensor
// CHECK-NOT:     "qfuse.mul"
func.func @scalar_of_another_type(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[512],bf16>, %s: !torch.vtensor<[],f32>) -> !torch.vtensor<[?,512],bf16> {
  %int512 = torch.constant.int 512
  %eps = torch.constant.float 1.0E-5
  %shape = torch.prim.ListConstruct %int512 : (!torch.int) -> !torch.list<int>
  // expected-remark @+1 {{rms-norm: fired}}
  %y = torch.aten.rms_norm %x, %shape, %w, %eps : !torch.vtensor<[?,512],bf16>, !torch.list<int>, !torch.vtensor<[512],bf16>, !torch.float -> !torch.vtensor<[?,512],bf16>
  %z = torch.aten.mul.Tensor %y, %s : !torch.vtensor<[?,512],bf16>, !torch.vtensor<[],f32> -> !torch.vtensor<[?,512],bf16>
  return %z : !torch.vtensor<[?,512],bf16>
}

// -----

// Groups of x that reach over the weight's stay on torch, which computes what the operator says.
// CHECK-LABEL: func.func @other_groups
// CHECK:         torch.operator
// CHECK-NOT:     qfuse.matmul
func.func @other_groups(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[1400,512],f8E4M3FN>, %s: !torch.vtensor<[11,4],f32>) -> !torch.vtensor<[?,1400],bf16> {
  %packing = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int96 = torch.constant.int 96
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int96 : (!torch.int, !torch.int) -> !torch.list<int>
  // expected-remark @+1 {{quantized-linear: refused at torch.operator: x is to be scaled in blocks of [1, 96], the weight in groups of 128; one must divide the other}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %dynamic, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[1400,512],f8E4M3FN>, !torch.vtensor<[11,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,1400],bf16>
  return %y : !torch.vtensor<[?,1400],bf16>
}

// -----

// Scales of another shape or type make no qtensor.
// CHECK-LABEL: func.func @scales_that_do_not_fit
// CHECK-NOT:     qfuse.matmul
func.func @scales_that_do_not_fit(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[1400,512],f8E4M3FN>, %s: !torch.vtensor<[10,4],f32>, %b: !torch.vtensor<[11,4],bf16>) -> (!torch.vtensor<[?,1400],bf16>, !torch.vtensor<[?,1400],bf16>) {
  %packing = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %none = torch.constant.none
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct : () -> !torch.list<int>
  // expected-remark @+1 {{quantized-linear: refused at torch.operator: scale shape [10, 4] does not fit: blocks of [128, 128] over [1400, 512] need [11, 4]}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %dynamic, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[1400,512],f8E4M3FN>, !torch.vtensor<[10,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,1400],bf16>
  // expected-remark @+1 {{quantized-linear: refused at torch.operator: scale type bf16 does not go with f8E4M3FN}}
  %z = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %b, %none, %wb, %xb, %packing, %dynamic, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[1400,512],f8E4M3FN>, !torch.vtensor<[11,4],bf16>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,1400],bf16>
  return %y, %z : !torch.vtensor<[?,1400],bf16>, !torch.vtensor<[?,1400],bf16>
}

// -----

// eps times an alpha of two is another eps.
// CHECK-LABEL: func.func @norm_with_alpha
// CHECK:         torch.aten.rsqrt
// CHECK-NOT:     qfuse
func.func @norm_with_alpha(%x: !torch.vtensor<[4,512],f32>, %w: !torch.vtensor<[512],f32>) -> !torch.vtensor<[4,512],f32> {
  %true = torch.constant.bool true
  %none = torch.constant.none
  %int2 = torch.constant.int 2
  %int-1 = torch.constant.int -1
  %eps = torch.constant.float 1.0E-6
  %dims = torch.prim.ListConstruct %int-1 : (!torch.int) -> !torch.list<int>
  %1 = torch.aten.pow.Tensor_Scalar %x, %int2 : !torch.vtensor<[4,512],f32>, !torch.int -> !torch.vtensor<[4,512],f32>
  %2 = torch.aten.mean.dim %1, %dims, %true, %none : !torch.vtensor<[4,512],f32>, !torch.list<int>, !torch.bool, !torch.none -> !torch.vtensor<[4,1],f32>
  %3 = torch.aten.add.Scalar %2, %eps, %int2 : !torch.vtensor<[4,1],f32>, !torch.float, !torch.int -> !torch.vtensor<[4,1],f32>
  %4 = torch.aten.rsqrt %3 : !torch.vtensor<[4,1],f32> -> !torch.vtensor<[4,1],f32>
  %5 = torch.aten.mul.Tensor %x, %4 : !torch.vtensor<[4,512],f32>, !torch.vtensor<[4,1],f32> -> !torch.vtensor<[4,512],f32>
  %7 = torch.aten.mul.Tensor %5, %w : !torch.vtensor<[4,512],f32>, !torch.vtensor<[512],f32> -> !torch.vtensor<[4,512],f32>
  return %7 : !torch.vtensor<[4,512],f32>
}

// -----

// Every spelling of element-wise operations: numbers become constants, missing bounds infinities.
// CHECK-LABEL: func.func @spellings
// CHECK-DAG:     %[[HALF:.+]] = arith.constant dense<5.000000e-01> : tensor<f32>
// CHECK-DAG:     %[[TWO:.+]] = arith.constant dense<2.000000e+00> : tensor<f32>
// CHECK:         %[[X:.+]] = "qfuse.rms_norm"
// CHECK:         %[[A:.+]] = "qfuse.add"(%[[X]], %[[HALF]]) : (tensor<?x512xbf16>, tensor<f32>) -> tensor<?x512xbf16>
// CHECK:         %[[B:.+]] = "qfuse.sub"(%[[A]], %[[X]])
// CHECK:         %[[C:.+]] = "qfuse.sub"(%[[B]], %[[TWO]])
// CHECK:         %[[D:.+]] = "qfuse.sub"(%[[TWO]], %[[C]])
// CHECK:         %[[E:.+]] = "qfuse.mul"(%[[D]], %[[HALF]])
// CHECK:         %[[F:.+]] = "qfuse.div"(%[[E]], %[[TWO]])
// CHECK:         %[[G:.+]] = "qfuse.div"(%[[F]], %[[X]])
// CHECK:         %[[H:.+]] = "qfuse.square"(%[[G]])
// CHECK:         %[[I:.+]] = "qfuse.clamp"(%[[H]]) {high = 2.000000e+00 : f64, low = 0xFFF0000000000000 : f64}
// CHECK:         %[[J:.+]] = "qfuse.clamp"(%[[I]]) {high = 0x7FF0000000000000 : f64, low = 5.000000e-01 : f64}
// CHECK:         %[[K:.+]] = "qfuse.clamp"(%[[J]]) {high = 2.000000e+00 : f64, low = 5.000000e-01 : f64}
// CHECK:         %[[L:.+]] = "qfuse.cast"(%[[K]]) : (tensor<?x512xbf16>) -> tensor<?x512xf32>
// CHECK:         %[[M:.+]] = "qfuse.neg"(%[[L]])
// CHECK:         %[[N:.+]] = "qfuse.exp"(%[[M]])
// CHECK:         %[[O:.+]] = "qfuse.sigmoid"(%[[N]])
// CHECK:         "qfuse.tanh"(%[[O]])
!t = !torch.vtensor<[?,512],bf16>
!f = !torch.vtensor<[?,512],f32>
func.func @spellings(%x: !t, %w: !torch.vtensor<[512],bf16>) -> !f {
  %int512 = torch.constant.int 512
  %one = torch.constant.int 1
  %two = torch.constant.int 2
  %half = torch.constant.float 5.0E-1
  %code = torch.constant.int 6
  %no = torch.constant.bool false
  %none = torch.constant.none
  %eps = torch.constant.float 1.0E-5
  %shape = torch.prim.ListConstruct %int512 : (!torch.int) -> !torch.list<int>
  // expected-remark @+1 {{rms-norm: fired}}
  %y = torch.aten.rms_norm %x, %shape, %w, %eps : !t, !torch.list<int>, !torch.vtensor<[512],bf16>, !torch.float -> !t
  %a = torch.aten.add.Scalar %y, %half, %one : !t, !torch.float, !torch.int -> !t
  %b = torch.aten.sub.Tensor %a, %y, %one : !t, !t, !torch.int -> !t
  %c = torch.aten.sub.Scalar %b, %two, %one : !t, !torch.int, !torch.int -> !t
  %d = torch.aten.rsub.Scalar %c, %two, %one : !t, !torch.int, !torch.int -> !t
  %e = torch.aten.mul.Scalar %d, %half : !t, !torch.float -> !t
  %f = torch.aten.div.Scalar %e, %two : !t, !torch.int -> !t
  %g = torch.aten.div.Tensor %f, %y : !t, !t -> !t
  %h = torch.aten.pow.Tensor_Scalar %g, %two : !t, !torch.int -> !t
  %i = torch.aten.clamp %h, %none, %two : !t, !torch.none, !torch.int -> !t
  %j = torch.aten.clamp_min %i, %half : !t, !torch.float -> !t
  %k = torch.aten.hardtanh %j, %half, %two : !t, !torch.float, !torch.int -> !t
  %l = torch.aten.to.dtype %k, %code, %no, %no, %none : !t, !torch.int, !torch.bool, !torch.bool, !torch.none -> !f
  %m = torch.aten.neg %l : !f -> !f
  %n = torch.aten.exp %m : !f -> !f
  %o = torch.aten.sigmoid %n : !f -> !f
  %p = torch.aten.tanh %o : !f -> !f
  return %p : !f
}

// -----

// What looks alike and is something else: other powers, scaled sums, bounds in the wrong order (of
// which torch takes the upper), numbers that are not known, and casts to integers.
// CHECK-LABEL: func.func @no_spellings
// CHECK:         "qfuse.rms_norm"
// CHECK-NOT:     qfuse.{{[^r]}}
!t = !torch.vtensor<[?,512],bf16>
func.func @no_spellings(%x: !t, %w: !torch.vtensor<[512],bf16>, %u: !torch.float) -> (!t, !t, !t, !t, !t, !torch.vtensor<[?,512],si32>) {
  %int512 = torch.constant.int 512
  %one = torch.constant.int 1
  %two = torch.constant.int 2
  %three = torch.constant.int 3
  %no = torch.constant.bool false
  %none = torch.constant.none
  %eps = torch.constant.float 1.0E-5
  %shape = torch.prim.ListConstruct %int512 : (!torch.int) -> !torch.list<int>
  // expected-remark @+1 {{rms-norm: fired}}
  %y = torch.aten.rms_norm %x, %shape, %w, %eps : !t, !torch.list<int>, !torch.vtensor<[512],bf16>, !torch.float -> !t
  %a = torch.aten.pow.Tensor_Scalar %y, %three : !t, !torch.int -> !t
  %b = torch.aten.sub.Tensor %y, %x, %two : !t, !t, !torch.int -> !t
  %c = torch.aten.clamp %y, %two, %one : !t, !torch.int, !torch.int -> !t
  %d = torch.aten.mul.Scalar %y, %u : !t, !torch.float -> !t
  %e = torch.aten.clamp_max %y, %u : !t, !torch.float -> !t
  %f = torch.aten.to.dtype %y, %three, %no, %no, %none : !t, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[?,512],si32>
  return %a, %b, %c, %d, %e, %f : !t, !t, !t, !t, !t, !torch.vtensor<[?,512],si32>
}
