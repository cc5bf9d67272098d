// RUN: qfuse-opt --qfuse-raise-torch --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-raise-torch --split-input-file --verify-diagnostics %s

// Gemma's norm multiplies by one more than the weight, in f32, and rounds afterwards.
// CHECK-LABEL: func.func @one_more_than_the_weight
// CHECK:         %[[W:.+]] = torch_c.to_builtin_tensor %arg1 : !torch.vtensor<[512],bf16> -> tensor<512xbf16>
// CHECK:         "qfuse.rms_norm"(%{{.+}}, %[[W]])
// CHECK-SAME:      offset = 1.000000e+00 : f64
// CHECK-SAME:      rounding = "after"
// CHECK-NOT:     torch.aten
func.func @one_more_than_the_weight(%x: !torch.vtensor<[1,?,512],bf16>, %w: !torch.vtensor<[512],bf16>) -> !torch.vtensor<[1,?,512],bf16> {
  %false = torch.constant.bool false
  %true = torch.constant.bool true
  %none = torch.constant.none
  %f32 = torch.constant.int 6
  %bf16 = torch.constant.int 15
  %int2 = torch.constant.int 2
  %int1 = torch.constant.int 1
  %int-1 = torch.constant.int -1
  %one = torch.constant.float 1.0
  %eps = torch.constant.float 1.0E-6
  %dims = torch.prim.ListConstruct %int-1 : (!torch.int) -> !torch.list<int>
  %0 = torch.aten.to.dtype %x, %f32, %false, %false, %none : !torch.vtensor<[1,?,512],bf16>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,?,512],f32>
  %1 = torch.aten.pow.Tensor_Scalar %0, %int2 : !torch.vtensor<[1,?,512],f32>, !torch.int -> !torch.vtensor<[1,?,512],f32>
  %2 = torch.aten.mean.dim %1, %dims, %true, %none : !torch.vtensor<[1,?,512],f32>, !torch.list<int>, !torch.bool, !torch.none -> !torch.vtensor<[1,?,1],f32>
  %3 = torch.aten.add.Scalar %2, %eps, %int1 : !torch.vtensor<[1,?,1],f32>, !torch.float, !torch.int -> !torch.vtensor<[1,?,1],f32>
  %4 = torch.aten.rsqrt %3 : !torch.vtensor<[1,?,1],f32> -> !torch.vtensor<[1,?,1],f32>
  %5 = torch.aten.mul.Tensor %0, %4 : !torch.vtensor<[1,?,512],f32>, !torch.vtensor<[1,?,1],f32> -> !torch.vtensor<[1,?,512],f32>
  %w32 = torch.aten.to.dtype %w, %f32, %false, %false, %none : !torch.vtensor<[512],bf16>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[512],f32>
  %w1 = torch.aten.add.Scalar %w32, %one, %int1 : !torch.vtensor<[512],f32>, !torch.float, !torch.int -> !torch.vtensor<[512],f32>
  %6 = torch.aten.mul.Tensor %5, %w1 : !torch.vtensor<[1,?,512],f32>, !torch.vtensor<[512],f32> -> !torch.vtensor<[1,?,512],f32>
  // expected-remark @+1 {{rms-norm: fired at torch.aten.to.dtype}}
  %7 = torch.aten.to.dtype %6, %bf16, %false, %false, %none : !torch.vtensor<[1,?,512],f32>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,?,512],bf16>
  return %7 : !torch.vtensor<[1,?,512],bf16>
}

// -----

// OLMo 2's and gpt-oss's: the weight promotes, and the product is rounded.
// CHECK-LABEL: func.func @rounded_after_the_weight
// CHECK:         "qfuse.rms_norm"
// CHECK-SAME:      offset = 0.000000e+00 : f64
// CHECK-SAME:      rounding = "after"
// CHECK-NOT:     torch.aten
func.func @rounded_after_the_weight(%x: !torch.vtensor<[1,?,512],bf16>, %w: !torch.vtensor<[512],bf16>) -> !torch.vtensor<[1,?,512],bf16> {
  %false = torch.constant.bool false
  %true = torch.constant.bool true
  %none = torch.constant.none
  %f32 = torch.constant.int 6
  %bf16 = torch.constant.int 15
  %int2 = torch.constant.int 2
  %int1 = torch.constant.int 1
  %int-1 = torch.constant.int -1
  %one = torch.constant.float 1.0
  %eps = torch.constant.float 1.0E-6
  %dims = torch.prim.ListConstruct %int-1 : (!torch.int) -> !torch.list<int>
  %0 = torch.aten.to.dtype %x, %f32, %false, %false, %none : !torch.vtensor<[1,?,512],bf16>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,?,512],f32>
  %1 = torch.aten.pow.Tensor_Scalar %0, %int2 : !torch.vtensor<[1,?,512],f32>, !torch.int -> !torch.vtensor<[1,?,512],f32>
  %2 = torch.aten.mean.dim %1, %dims, %true, %none : !torch.vtensor<[1,?,512],f32>, !torch.list<int>, !torch.bool, !torch.none -> !torch.vtensor<[1,?,1],f32>
  %3 = torch.aten.add.Scalar %2, %eps, %int1 : !torch.vtensor<[1,?,1],f32>, !torch.float, !torch.int -> !torch.vtensor<[1,?,1],f32>
  %4 = torch.aten.rsqrt %3 : !torch.vtensor<[1,?,1],f32> -> !torch.vtensor<[1,?,1],f32>
  %5 = torch.aten.mul.Tensor %0, %4 : !torch.vtensor<[1,?,512],f32>, !torch.vtensor<[1,?,1],f32> -> !torch.vtensor<[1,?,512],f32>
  %6 = torch.aten.mul.Tensor %w, %5 : !torch.vtensor<[512],bf16>, !torch.vtensor<[1,?,512],f32> -> !torch.vtensor<[1,?,512],f32>
  // expected-remark @+1 {{rms-norm: fired at torch.aten.to.dtype}}
  %7 = torch.aten.to.dtype %6, %bf16, %false, %false, %none : !torch.vtensor<[1,?,512],f32>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,?,512],bf16>
  return %7 : !torch.vtensor<[1,?,512],bf16>
}

// -----

// One more than a weight in bf16 is rounded before it is used: the sum is the weight.
// CHECK-LABEL: func.func @one_more_in_bf16
// CHECK:         %[[SUM:.+]] = "qfuse.add"({{.+}}) : (tensor<512xbf16>, tensor<f32>) -> tensor<512xbf16>
// CHECK:         "qfuse.rms_norm"(%{{.+}}, %[[SUM]])
// CHECK-SAME:      offset = 0.000000e+00 : f64
func.func @one_more_in_bf16(%x: !torch.vtensor<[1,?,512],bf16>, %w: !torch.vtensor<[512],bf16>) -> !torch.vtensor<[1,?,512],bf16> {
  %false = torch.constant.bool false
  %true = torch.constant.bool true
  %none = torch.constant.none
  %f32 = torch.constant.int 6
  %bf16 = torch.constant.int 15
  %int2 = torch.constant.int 2
  %int1 = torch.constant.int 1
  %int-1 = torch.constant.int -1
  %one = torch.constant.float 1.0
  %eps = torch.constant.float 1.0E-6
  %dims = torch.prim.ListConstruct %int-1 : (!torch.int) -> !torch.list<int>
  %0 = torch.aten.to.dtype %x, %f32, %false, %false, %none : !torch.vtensor<[1,?,512],bf16>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,?,512],f32>
  %1 = torch.aten.pow.Tensor_Scalar %0, %int2 : !torch.vtensor<[1,?,512],f32>, !torch.int -> !torch.vtensor<[1,?,512],f32>
  %2 = torch.aten.mean.dim %1, %dims, %true, %none : !torch.vtensor<[1,?,512],f32>, !torch.list<int>, !torch.bool, !torch.none -> !torch.vtensor<[1,?,1],f32>
  %3 = torch.aten.add.Scalar %2, %eps, %int1 : !torch.vtensor<[1,?,1],f32>, !torch.float, !torch.int -> !torch.vtensor<[1,?,1],f32>
  %4 = torch.aten.rsqrt %3 : !torch.vtensor<[1,?,1],f32> -> !torch.vtensor<[1,?,1],f32>
  %5 = torch.aten.mul.Tensor %0, %4 : !torch.vtensor<[1,?,512],f32>, !torch.vtensor<[1,?,1],f32> -> !torch.vtensor<[1,?,512],f32>
  %w1 = torch.aten.add.Scalar %w, %one, %int1 : !torch.vtensor<[512],bf16>, !torch.float, !torch.int -> !torch.vtensor<[512],bf16>
  %6 = torch.aten.mul.Tensor %5, %w1 : !torch.vtensor<[1,?,512],f32>, !torch.vtensor<[512],bf16> -> !torch.vtensor<[1,?,512],f32>
  // expected-remark @+1 {{rms-norm: fired at torch.aten.to.dtype}}
  %7 = torch.aten.to.dtype %6, %bf16, %false, %false, %none : !torch.vtensor<[1,?,512],f32>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,?,512],bf16>
  return %7 : !torch.vtensor<[1,?,512],bf16>
}

// -----

// Two times one is not one.
// CHECK-LABEL: func.func @number_with_alpha
// CHECK:         torch.aten.add.Scalar
// CHECK:         "qfuse.rms_norm"
// CHECK-SAME:      offset = 0.000000e+00 : f64
func.func @number_with_alpha(%x: !torch.vtensor<[1,?,512],bf16>, %w: !torch.vtensor<[512],f32>) -> !torch.vtensor<[1,?,512],bf16> {
  %false = torch.constant.bool false
  %true = torch.constant.bool true
  %none = torch.constant.none
  %f32 = torch.constant.int 6
  %bf16 = torch.constant.int 15
  %int2 = torch.constant.int 2
  %int1 = torch.constant.int 1
  %int-1 = torch.constant.int -1
  %one = torch.constant.float 1.0
  %eps = torch.constant.float 1.0E-6
  %dims = torch.prim.ListConstruct %int-1 : (!torch.int) -> !torch.list<int>
  %0 = torch.aten.to.dtype %x, %f32, %false, %false, %none : !torch.vtensor<[1,?,512],bf16>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,?,512],f32>
  %1 = torch.aten.pow.Tensor_Scalar %0, %int2 : !torch.vtensor<[1,?,512],f32>, !torch.int -> !torch.vtensor<[1,?,512],f32>
  %2 = torch.aten.mean.dim %1, %dims, %true, %none : !torch.vtensor<[1,?,512],f32>, !torch.list<int>, !torch.bool, !torch.none -> !torch.vtensor<[1,?,1],f32>
  %3 = torch.aten.add.Scalar %2, %eps, %int1 : !torch.vtensor<[1,?,1],f32>, !torch.float, !torch.int -> !torch.vtensor<[1,?,1],f32>
  %4 = torch.aten.rsqrt %3 : !torch.vtensor<[1,?,1],f32> -> !torch.vtensor<[1,?,1],f32>
  %5 = torch.aten.mul.Tensor %0, %4 : !torch.vtensor<[1,?,512],f32>, !torch.vtensor<[1,?,1],f32> -> !torch.vtensor<[1,?,512],f32>
  %w1 = torch.aten.add.Scalar %w, %one, %int2 : !torch.vtensor<[512],f32>, !torch.float, !torch.int -> !torch.vtensor<[512],f32>
  %6 = torch.aten.mul.Tensor %5, %w1 : !torch.vtensor<[1,?,512],f32>, !torch.vtensor<[512],f32> -> !torch.vtensor<[1,?,512],f32>
  // expected-remark @+1 {{rms-norm: fired at torch.aten.to.dtype}}
  %7 = torch.aten.to.dtype %6, %bf16, %false, %false, %none : !torch.vtensor<[1,?,512],f32>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,?,512],bf16>
  return %7 : !torch.vtensor<[1,?,512],bf16>
}

// -----

// Heads are normed where they lie; the transpose comes afterwards.
// CHECK-LABEL: func.func @heads_first
// CHECK:         %[[X:.+]] = torch_c.to_builtin_tensor %arg0
// CHECK:         %[[N:.+]] = "qfuse.rms_norm"(%[[X]]
// CHECK:         %[[V:.+]] = torch_c.from_builtin_tensor %[[N]]
// CHECK:         %[[Y:.+]] = torch.aten.transpose.int %[[V]], %int1, %int2
// CHECK-NEXT:    return %[[Y]]
func.func @heads_first(%x: !torch.vtensor<[1,?,8,64],bf16>, %w: !torch.vtensor<[64],bf16>) -> !torch.vtensor<[1,8,?,64],bf16> {
  %false = torch.constant.bool false
  %true = torch.constant.bool true
  %none = torch.constant.none
  %f32 = torch.constant.int 6
  %bf16 = torch.constant.int 15
  %int2 = torch.constant.int 2
  %int1 = torch.constant.int 1
  %int-1 = torch.constant.int -1
  %one = torch.constant.float 1.0
  %eps = torch.constant.float 1.0E-6
  %dims = torch.prim.ListConstruct %int-1 : (!torch.int) -> !torch.list<int>
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,64],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %0 = torch.aten.to.dtype %t, %f32, %false, %false, %none : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,8,?,64],f32>
  %1 = torch.aten.pow.Tensor_Scalar %0, %int2 : !torch.vtensor<[1,8,?,64],f32>, !torch.int -> !torch.vtensor<[1,8,?,64],f32>
  %2 = torch.aten.mean.dim %1, %dims, %true, %none : !torch.vtensor<[1,8,?,64],f32>, !torch.list<int>, !torch.bool, !torch.none -> !torch.vtensor<[1,8,?,1],f32>
  %3 = torch.aten.add.Scalar %2, %eps, %int1 : !torch.vtensor<[1,8,?,1],f32>, !torch.float, !torch.int -> !torch.vtensor<[1,8,?,1],f32>
  %4 = torch.aten.rsqrt %3 : !torch.vtensor<[1,8,?,1],f32> -> !torch.vtensor<[1,8,?,1],f32>
  %5 = torch.aten.mul.Tensor %0, %4 : !torch.vtensor<[1,8,?,64],f32>, !torch.vtensor<[1,8,?,1],f32> -> !torch.vtensor<[1,8,?,64],f32>
  %6 = torch.aten.to.dtype %5, %bf16, %false, %false, %none : !torch.vtensor<[1,8,?,64],f32>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,8,?,64],bf16>
  // expected-remark @+1 {{rms-norm: fired at torch.aten.mul.Tensor}}
  %7 = torch.aten.mul.Tensor %w, %6 : !torch.vtensor<[64],bf16>, !torch.vtensor<[1,8,?,64],bf16> -> !torch.vtensor<[1,8,?,64],bf16>
  return %7 : !torch.vtensor<[1,8,?,64],bf16>
}

// -----

// A transpose of the normed dimension is another matter.
// CHECK-LABEL: func.func @columns_first
// CHECK:         %[[T:.+]] = torch.aten.transpose.int %arg0
// CHECK:         %[[X:.+]] = torch_c.to_builtin_tensor %[[T]]
// CHECK:         "qfuse.rms_norm"(%[[X]]
func.func @columns_first(%x: !torch.vtensor<[1,?,64,8],bf16>, %w: !torch.vtensor<[64],bf16>) -> !torch.vtensor<[1,?,8,64],bf16> {
  %false = torch.constant.bool false
  %true = torch.constant.bool true
  %none = torch.constant.none
  %f32 = torch.constant.int 6
  %bf16 = torch.constant.int 15
  %int2 = torch.constant.int 2
  %int1 = torch.constant.int 1
  %int-1 = torch.constant.int -1
  %one = torch.constant.float 1.0
  %eps = torch.constant.float 1.0E-6
  %dims = torch.prim.ListConstruct %int-1 : (!torch.int) -> !torch.list<int>
  %t = torch.aten.transpose.int %x, %int-1, %int2 : !torch.vtensor<[1,?,64,8],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,?,8,64],bf16>
  %0 = torch.aten.to.dtype %t, %f32, %false, %false, %none : !torch.vtensor<[1,?,8,64],bf16>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,?,8,64],f32>
  %1 = torch.aten.pow.Tensor_Scalar %0, %int2 : !torch.vtensor<[1,?,8,64],f32>, !torch.int -> !torch.vtensor<[1,?,8,64],f32>
  %2 = torch.aten.mean.dim %1, %dims, %true, %none : !torch.vtensor<[1,?,8,64],f32>, !torch.list<int>, !torch.bool, !torch.none -> !torch.vtensor<[1,?,8,1],f32>
  %3 = torch.aten.add.Scalar %2, %eps, %int1 : !torch.vtensor<[1,?,8,1],f32>, !torch.float, !torch.int -> !torch.vtensor<[1,?,8,1],f32>
  %4 = torch.aten.rsqrt %3 : !torch.vtensor<[1,?,8,1],f32> -> !torch.vtensor<[1,?,8,1],f32>
  %5 = torch.aten.mul.Tensor %0, %4 : !torch.vtensor<[1,?,8,64],f32>, !torch.vtensor<[1,?,8,1],f32> -> !torch.vtensor<[1,?,8,64],f32>
  %6 = torch.aten.to.dtype %5, %bf16, %false, %false, %none : !torch.vtensor<[1,?,8,64],f32>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,?,8,64],bf16>
  // expected-remark @+1 {{rms-norm: fired at torch.aten.mul.Tensor}}
  %7 = torch.aten.mul.Tensor %w, %6 : !torch.vtensor<[64],bf16>, !torch.vtensor<[1,?,8,64],bf16> -> !torch.vtensor<[1,?,8,64],bf16>
  return %7 : !torch.vtensor<[1,?,8,64],bf16>
}
