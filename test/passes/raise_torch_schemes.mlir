// RUN: qfuse-opt --qfuse-raise-torch --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-raise-torch --split-input-file --verify-diagnostics %s

// Per token x per channel, INT8: the block of each is [1, K].
// CHECK-LABEL: func.func @int8_per_channel
// CHECK:         "qfuse.pack"{{.*}}tensor<64x512xi8>, #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none"
// CHECK:         qfuse.input_scheme = #qfuse.scheme<array<i64: 1, 512>, f32, "none"
func.func @int8_per_channel(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,512],si8>, %s: !torch.vtensor<[64,1],f32>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int512 = torch.constant.int 512
  %wb = torch.prim.ListConstruct %int1, %int512 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int512 : (!torch.int, !torch.int) -> !torch.list<int>
  %packing = torch.constant.str "none"
  %format = torch.constant.str "dynamic"
  // expected-remark @+1 {{quantized-linear: fired at torch.operator}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,512],si8>, !torch.vtensor<[64,1],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// W4A16 with zero points: three components, and x as it is.
// CHECK-LABEL: func.func @int4_with_zero_points
// CHECK:         "qfuse.pack"(%{{.+}}, %{{.+}}, %{{.+}}) : (tensor<64x256xi8>, tensor<64x4xbf16>, tensor<64x4xi8>) -> !qfuse.qtensor<tensor<64x512xi4>, #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "int"
// CHECK-NOT:     qfuse.input_scheme
func.func @int4_with_zero_points(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,256],si8>, %s: !torch.vtensor<[64,4],bf16>, %z: !torch.vtensor<[64,4],si8>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct : () -> !torch.list<int>
  %packing = torch.constant.str "int4"
  %format = torch.constant.str "dynamic"
  // expected-remark @+1 {{quantized-linear: fired at torch.operator}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %z, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,256],si8>, !torch.vtensor<[64,4],bf16>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.vtensor<[64,4],si8>, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// W4A8: x in q8_1.
// CHECK-LABEL: func.func @int4_with_q8_1
// CHECK:         "qfuse.pack"{{.*}}tensor<64x512xi4>, #qfuse.scheme<array<i64: 1, 32>, f16, "int4", "none"
// CHECK:         qfuse.input_scheme = #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1"
func.func @int4_with_q8_1(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,256],ui8>, %s: !torch.vtensor<[64,16],f16>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int32 = torch.constant.int 32
  %wb = torch.prim.ListConstruct %int1, %int32 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int32 : (!torch.int, !torch.int) -> !torch.list<int>
  %packing = torch.constant.str "int4"
  %format = torch.constant.str "q8_1"
  // expected-remark @+1 {{quantized-linear: fired at torch.operator}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,256],ui8>, !torch.vtensor<[64,16],f16>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// ggml's K-quants: scales are bytes.
// CHECK-LABEL: func.func @q4_k
// CHECK:         "qfuse.pack"{{.*}}(tensor<64x256xi8>, tensor<64x32xi8>) -> !qfuse.qtensor<tensor<64x512xi4>, #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k"
func.func @q4_k(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,256],si8>, %s: !torch.vtensor<[64,32],si8>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int32 = torch.constant.int 32
  %int256 = torch.constant.int 256
  %wb = torch.prim.ListConstruct %int1, %int256 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int32 : (!torch.int, !torch.int) -> !torch.list<int>
  %packing = torch.constant.str "q4_k"
  %format = torch.constant.str "q8_1"
  // expected-remark @+1 {{quantized-linear: fired at torch.operator}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,256],si8>, !torch.vtensor<[64,32],si8>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// CHECK-LABEL: func.func @q6_k
// CHECK:         "qfuse.pack"{{.*}}(tensor<64x384xi8>, tensor<64x36xi8>) -> !qfuse.qtensor<tensor<64x512xi6>, #qfuse.scheme<array<i64: 1, 256>, i8, "q6_k"
func.func @q6_k(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,384],si8>, %s: !torch.vtensor<[64,36],si8>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int32 = torch.constant.int 32
  %int256 = torch.constant.int 256
  %wb = torch.prim.ListConstruct %int1, %int256 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int32 : (!torch.int, !torch.int) -> !torch.list<int>
  %packing = torch.constant.str "q6_k"
  %format = torch.constant.str "q8_1"
  // expected-remark @+1 {{quantized-linear: fired at torch.operator}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,384],si8>, !torch.vtensor<[64,36],si8>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// MXFP4: power-of-two scales of 32 columns.
// CHECK-LABEL: func.func @mxfp4
// CHECK:         "qfuse.pack"{{.*}}tensor<64x512xf4E2M1FN>, #qfuse.scheme<array<i64: 1, 32>, f8E8M0FNU, "fp4"
func.func @mxfp4(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,256],si8>, %s: !torch.vtensor<[64,16],f8E8M0FNU>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int32 = torch.constant.int 32
  %wb = torch.prim.ListConstruct %int1, %int32 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int32 : (!torch.int, !torch.int) -> !torch.list<int>
  %packing = torch.constant.str "fp4"
  %format = torch.constant.str "q8_1"
  // expected-remark @+1 {{quantized-linear: fired at torch.operator}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,256],si8>, !torch.vtensor<[64,16],f8E8M0FNU>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// A given scale of x is an operand of its quantization.
// CHECK-LABEL: func.func @static_scale
// CHECK-SAME:    %arg3: !torch.vtensor<[1],f32>
// CHECK:         %[[S:.+]] = torch_c.to_builtin_tensor %arg3
// CHECK:         "qfuse.quantize"(%{{.+}}, %[[S]]) : (tensor<?x512xbf16>, tensor<1xf32>) -> !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 512>, f32
func.func @static_scale(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,512],f8E4M3FN>, %s: !torch.vtensor<[64,1],f32>, %g: !torch.vtensor<[1],f32>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int512 = torch.constant.int 512
  %wb = torch.prim.ListConstruct %int1, %int512 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int512 : (!torch.int, !torch.int) -> !torch.list<int>
  %packing = torch.constant.str "none"
  %format = torch.constant.str "static"
  // expected-remark @+1 {{quantized-linear: fired at torch.operator}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %none, %g) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,512],f8E4M3FN>, !torch.vtensor<[64,1],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.vtensor<[1],f32>) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// One scale for all of x, found at run time.
// CHECK-LABEL: func.func @tensor_scale
// CHECK:         %[[S:.+]] = "qfuse.tensor_scale"(%[[X:.+]]) {storage = f8E4M3FN}
// CHECK:         "qfuse.quantize"(%[[X]], %[[S]])
func.func @tensor_scale(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,512],f8E5M2>, %s: !torch.vtensor<[64,1],f32>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int512 = torch.constant.int 512
  %wb = torch.prim.ListConstruct %int1, %int512 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int512 : (!torch.int, !torch.int) -> !torch.list<int>
  %packing = torch.constant.str "none"
  %format = torch.constant.str "tensor"
  // expected-remark @+1 {{quantized-linear: fired at torch.operator}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,512],f8E5M2>, !torch.vtensor<[64,1],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// Power-of-two scales of x.
// CHECK-LABEL: func.func @e8m0
// CHECK:         qfuse.input_scheme = #qfuse.scheme<array<i64: 1, 128>, f8E8M0FNU, "none"
func.func @e8m0(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,512],f8E4M3FN>, %s: !torch.vtensor<[1,4],f32>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %packing = torch.constant.str "none"
  %format = torch.constant.str "e8m0"
  // expected-remark @+1 {{quantized-linear: fired at torch.operator}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,512],f8E4M3FN>, !torch.vtensor<[1,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// Groups of x within the weight's.
// CHECK-LABEL: func.func @finer_groups
// CHECK:         qfuse.input_scheme = #qfuse.scheme<array<i64: 1, 64>, f32
func.func @finer_groups(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,512],f8E4M3FN>, %s: !torch.vtensor<[1,4],f32>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int64 = torch.constant.int 64
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int64 : (!torch.int, !torch.int) -> !torch.list<int>
  %packing = torch.constant.str "none"
  %format = torch.constant.str "dynamic"
  // expected-remark @+1 {{quantized-linear: fired at torch.operator}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,512],f8E4M3FN>, !torch.vtensor<[1,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// What no scheme can say stays on torch.
// CHECK-LABEL: func.func @unknown_packing
// CHECK:         torch.operator
func.func @unknown_packing(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,256],si8>, %s: !torch.vtensor<[64,4],f32>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct : () -> !torch.list<int>
  %packing = torch.constant.str "int3"
  %format = torch.constant.str "dynamic"
  // expected-remark @+1 {{quantized-linear: refused at torch.operator: "int3" is not one of none, int4, fp4, q4_k, q6_k}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,256],si8>, !torch.vtensor<[64,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// CHECK-LABEL: func.func @zero_points_of_int8
// CHECK:         torch.operator
func.func @zero_points_of_int8(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,512],si8>, %s: !torch.vtensor<[64,1],f32>, %z: !torch.vtensor<[64,1],si8>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int512 = torch.constant.int 512
  %wb = torch.prim.ListConstruct %int1, %int512 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct : () -> !torch.list<int>
  %packing = torch.constant.str "none"
  %format = torch.constant.str "dynamic"
  // expected-remark @+1 {{quantized-linear: refused at torch.operator: packing "none" has no zero points; "int4" has}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %z, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,512],si8>, !torch.vtensor<[64,1],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.vtensor<[64,1],si8>, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// CHECK-LABEL: func.func @zero_points_of_another_shape
// CHECK:         torch.operator
func.func @zero_points_of_another_shape(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,256],si8>, %s: !torch.vtensor<[64,4],bf16>, %z: !torch.vtensor<[64,2],si8>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct : () -> !torch.list<int>
  %packing = torch.constant.str "int4"
  %format = torch.constant.str "dynamic"
  // expected-remark @+1 {{quantized-linear: refused at torch.operator: zero points are tensor<64x2xi8>; expected tensor<64x4xi8>}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %z, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,256],si8>, !torch.vtensor<[64,4],bf16>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.vtensor<[64,2],si8>, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// One scale for all of x has no groups.
// CHECK-LABEL: func.func @tensor_scale_of_groups
// CHECK:         torch.operator
func.func @tensor_scale_of_groups(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,512],f8E4M3FN>, %s: !torch.vtensor<[64,1],f32>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %int512 = torch.constant.int 512
  %wb = torch.prim.ListConstruct %int1, %int512 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %packing = torch.constant.str "none"
  %format = torch.constant.str "tensor"
  // expected-remark @+1 {{quantized-linear: refused at torch.operator: x is to be scaled in blocks of [1, 128]; use [1, 512]}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,512],f8E4M3FN>, !torch.vtensor<[64,1],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}

// -----

// CHECK-LABEL: func.func @static_without_a_scale
// CHECK:         torch.operator
func.func @static_without_a_scale(%x: !torch.vtensor<[?,512],bf16>, %w: !torch.vtensor<[64,512],f8E4M3FN>, %s: !torch.vtensor<[64,1],f32>) -> !torch.vtensor<[?,64],bf16> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %int512 = torch.constant.int 512
  %wb = torch.prim.ListConstruct %int1, %int512 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int512 : (!torch.int, !torch.int) -> !torch.list<int>
  %packing = torch.constant.str "none"
  %format = torch.constant.str "static"
  // expected-remark @+1 {{quantized-linear: refused at torch.operator: the scale of x is !torch.none; give a tensor<1xf32>}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %format, %none, %none) : (!torch.vtensor<[?,512],bf16>, !torch.vtensor<[64,512],f8E4M3FN>, !torch.vtensor<[64,1],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,64],bf16>
  return %y : !torch.vtensor<[?,64],bf16>
}
