// RUN: qfuse-opt --qfuse-fuse-rope --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-rope --split-input-file --verify-diagnostics %s

// The rotary embedding of Llama and Qwen; the rotation happens before the transpose.
// CHECK-LABEL: func.func @rotate_half
// CHECK:         %[[X:.+]] = torch_c.to_builtin_tensor %arg0
// CHECK:         %[[R:.+]] = "qfuse.rope"(%[[X]], %{{.*}}, %{{.*}})
// CHECK:         %[[T:.+]] = torch_c.from_builtin_tensor %[[R]]
// CHECK:         %[[Y:.+]] = torch.aten.transpose.int %[[T]]
// CHECK-NEXT:    return %[[Y]]
// CHECK-NOT:     torch.aten.cat
func.func @rotate_half(%x: !torch.vtensor<[1,?,8,64],bf16>, %cos: !torch.vtensor<[1,?,64],bf16>, %sin: !torch.vtensor<[1,?,64],bf16>) -> !torch.vtensor<[1,8,?,64],bf16> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int16 = torch.constant.int 16
  %int32 = torch.constant.int 32
  %int-1 = torch.constant.int -1
  %end = torch.constant.int 9223372036854775807
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,64],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,64],bf16>, !torch.int -> !torch.vtensor<[1,1,?,64],bf16>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,64],bf16>, !torch.int -> !torch.vtensor<[1,1,?,64],bf16>
  %lo = torch.aten.slice.Tensor %t, %int3, %int0, %int32, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %hi = torch.aten.slice.Tensor %t, %int3, %int32, %end, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %n = torch.aten.neg %hi : !torch.vtensor<[1,8,?,32],bf16> -> !torch.vtensor<[1,8,?,32],bf16>
  %halves = torch.prim.ListConstruct %n, %lo : (!torch.vtensor<[1,8,?,32],bf16>, !torch.vtensor<[1,8,?,32],bf16>) -> !torch.list<vtensor>
  %r = torch.aten.cat %halves, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %m0 = torch.aten.mul.Tensor %t, %c : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,1,?,64],bf16> -> !torch.vtensor<[1,8,?,64],bf16>
  %m1 = torch.aten.mul.Tensor %r, %s : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,1,?,64],bf16> -> !torch.vtensor<[1,8,?,64],bf16>
  // expected-remark @+1 {{rope: fired at torch.aten.add.Tensor: saves 4 launches, 8192 B a row}}
  %y = torch.aten.add.Tensor %m0, %m1, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,8,?,64],bf16>, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  return %y : !torch.vtensor<[1,8,?,64],bf16>
}

// -----

// Products commute.
// CHECK-LABEL: func.func @other_operand_order
// CHECK:         %[[X:.+]] = torch_c.to_builtin_tensor %arg0
// CHECK:         %[[R:.+]] = "qfuse.rope"(%[[X]], %{{.*}}, %{{.*}})
// CHECK:         %[[T:.+]] = torch_c.from_builtin_tensor %[[R]]
// CHECK:         %[[Y:.+]] = torch.aten.transpose.int %[[T]]
// CHECK-NEXT:    return %[[Y]]
func.func @other_operand_order(%x: !torch.vtensor<[1,?,8,64],bf16>, %cos: !torch.vtensor<[1,?,64],bf16>, %sin: !torch.vtensor<[1,?,64],bf16>) -> !torch.vtensor<[1,8,?,64],bf16> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int16 = torch.constant.int 16
  %int32 = torch.constant.int 32
  %int-1 = torch.constant.int -1
  %end = torch.constant.int 9223372036854775807
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,64],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,64],bf16>, !torch.int -> !torch.vtensor<[1,1,?,64],bf16>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,64],bf16>, !torch.int -> !torch.vtensor<[1,1,?,64],bf16>
  %lo = torch.aten.slice.Tensor %t, %int3, %int0, %int32, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %hi = torch.aten.slice.Tensor %t, %int3, %int32, %end, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %n = torch.aten.neg %hi : !torch.vtensor<[1,8,?,32],bf16> -> !torch.vtensor<[1,8,?,32],bf16>
  %halves = torch.prim.ListConstruct %n, %lo : (!torch.vtensor<[1,8,?,32],bf16>, !torch.vtensor<[1,8,?,32],bf16>) -> !torch.list<vtensor>
  %r = torch.aten.cat %halves, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %m0 = torch.aten.mul.Tensor %c, %t : !torch.vtensor<[1,1,?,64],bf16>, !torch.vtensor<[1,8,?,64],bf16> -> !torch.vtensor<[1,8,?,64],bf16>
  %m1 = torch.aten.mul.Tensor %r, %s : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,1,?,64],bf16> -> !torch.vtensor<[1,8,?,64],bf16>
  // expected-remark @+1 {{rope: fired at torch.aten.add.Tensor}}
  %y = torch.aten.add.Tensor %m0, %m1, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,8,?,64],bf16>, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  return %y : !torch.vtensor<[1,8,?,64],bf16>
}

// -----

// cos in f32 promotes the result, so the products round elsewhere.
// CHECK-LABEL: func.func @f32_tables
// CHECK-NOT:     "qfuse.rope"
// CHECK:         torch.aten.cat
func.func @f32_tables(%x: !torch.vtensor<[1,?,8,64],bf16>, %cos: !torch.vtensor<[1,?,64],f32>, %sin: !torch.vtensor<[1,?,64],f32>) -> !torch.vtensor<[1,8,?,64],f32> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int16 = torch.constant.int 16
  %int32 = torch.constant.int 32
  %int-1 = torch.constant.int -1
  %end = torch.constant.int 9223372036854775807
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,64],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,64],f32>, !torch.int -> !torch.vtensor<[1,1,?,64],f32>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,64],f32>, !torch.int -> !torch.vtensor<[1,1,?,64],f32>
  %lo = torch.aten.slice.Tensor %t, %int3, %int0, %int32, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %hi = torch.aten.slice.Tensor %t, %int3, %int32, %end, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %n = torch.aten.neg %hi : !torch.vtensor<[1,8,?,32],bf16> -> !torch.vtensor<[1,8,?,32],bf16>
  %halves = torch.prim.ListConstruct %n, %lo : (!torch.vtensor<[1,8,?,32],bf16>, !torch.vtensor<[1,8,?,32],bf16>) -> !torch.list<vtensor>
  %r = torch.aten.cat %halves, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %m0 = torch.aten.mul.Tensor %t, %c : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,1,?,64],f32> -> !torch.vtensor<[1,8,?,64],f32>
  %m1 = torch.aten.mul.Tensor %r, %s : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,1,?,64],f32> -> !torch.vtensor<[1,8,?,64],f32>
  // expected-remark @+1 {{rope: refused at torch.aten.add.Tensor: cos or sin is f32 but x is bf16; cast cos and sin to x's type before the product}}
  %y = torch.aten.add.Tensor %m0, %m1, %int1 : !torch.vtensor<[1,8,?,64],f32>, !torch.vtensor<[1,8,?,64],f32>, !torch.int -> !torch.vtensor<[1,8,?,64],f32>
  return %y : !torch.vtensor<[1,8,?,64],f32>
}

// -----

// Another split is another rotation, silently left to torch.
// CHECK-LABEL: func.func @uneven_halves
// CHECK-NOT:     "qfuse.rope"
// CHECK:         torch.aten.cat
func.func @uneven_halves(%x: !torch.vtensor<[1,?,8,64],bf16>, %cos: !torch.vtensor<[1,?,64],bf16>, %sin: !torch.vtensor<[1,?,64],bf16>) -> !torch.vtensor<[1,8,?,64],bf16> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int16 = torch.constant.int 16
  %int32 = torch.constant.int 32
  %int-1 = torch.constant.int -1
  %end = torch.constant.int 9223372036854775807
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,64],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,64],bf16>, !torch.int -> !torch.vtensor<[1,1,?,64],bf16>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,64],bf16>, !torch.int -> !torch.vtensor<[1,1,?,64],bf16>
  %lo = torch.aten.slice.Tensor %t, %int3, %int0, %int16, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %hi = torch.aten.slice.Tensor %t, %int3, %int16, %end, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %n = torch.aten.neg %hi : !torch.vtensor<[1,8,?,32],bf16> -> !torch.vtensor<[1,8,?,32],bf16>
  %halves = torch.prim.ListConstruct %n, %lo : (!torch.vtensor<[1,8,?,32],bf16>, !torch.vtensor<[1,8,?,32],bf16>) -> !torch.list<vtensor>
  %r = torch.aten.cat %halves, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %m0 = torch.aten.mul.Tensor %t, %c : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,1,?,64],bf16> -> !torch.vtensor<[1,8,?,64],bf16>
  %m1 = torch.aten.mul.Tensor %r, %s : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,1,?,64],bf16> -> !torch.vtensor<[1,8,?,64],bf16>
  %y = torch.aten.add.Tensor %m0, %m1, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,8,?,64],bf16>, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  return %y : !torch.vtensor<[1,8,?,64],bf16>
}

// -----

// x + 2 y is no rotation.
// CHECK-LABEL: func.func @scaled_sum
// CHECK-NOT:     "qfuse.rope"
// CHECK:         torch.aten.cat
func.func @scaled_sum(%x: !torch.vtensor<[1,?,8,64],bf16>, %cos: !torch.vtensor<[1,?,64],bf16>, %sin: !torch.vtensor<[1,?,64],bf16>) -> !torch.vtensor<[1,8,?,64],bf16> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int16 = torch.constant.int 16
  %int32 = torch.constant.int 32
  %int-1 = torch.constant.int -1
  %end = torch.constant.int 9223372036854775807
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,64],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,64],bf16>, !torch.int -> !torch.vtensor<[1,1,?,64],bf16>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,64],bf16>, !torch.int -> !torch.vtensor<[1,1,?,64],bf16>
  %lo = torch.aten.slice.Tensor %t, %int3, %int0, %int32, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %hi = torch.aten.slice.Tensor %t, %int3, %int32, %end, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %n = torch.aten.neg %hi : !torch.vtensor<[1,8,?,32],bf16> -> !torch.vtensor<[1,8,?,32],bf16>
  %halves = torch.prim.ListConstruct %n, %lo : (!torch.vtensor<[1,8,?,32],bf16>, !torch.vtensor<[1,8,?,32],bf16>) -> !torch.list<vtensor>
  %r = torch.aten.cat %halves, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %m0 = torch.aten.mul.Tensor %t, %c : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,1,?,64],bf16> -> !torch.vtensor<[1,8,?,64],bf16>
  %m1 = torch.aten.mul.Tensor %r, %s : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,1,?,64],bf16> -> !torch.vtensor<[1,8,?,64],bf16>
  %y = torch.aten.add.Tensor %m0, %m1, %int2 : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,8,?,64],bf16>, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  return %y : !torch.vtensor<[1,8,?,64],bf16>
}

// -----

// A slice without an end is not read; it stays with torch.
// CHECK-LABEL: func.func @open_slice
// CHECK-NOT:     "qfuse.rope"
// CHECK:         torch.aten.cat
func.func @open_slice(%x: !torch.vtensor<[1,?,8,64],bf16>, %cos: !torch.vtensor<[1,?,64],bf16>, %sin: !torch.vtensor<[1,?,64],bf16>) -> !torch.vtensor<[1,8,?,64],bf16> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int16 = torch.constant.int 16
  %int32 = torch.constant.int 32
  %int-1 = torch.constant.int -1
  %end = torch.constant.none
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,64],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,64],bf16>, !torch.int -> !torch.vtensor<[1,1,?,64],bf16>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,64],bf16>, !torch.int -> !torch.vtensor<[1,1,?,64],bf16>
  %lo = torch.aten.slice.Tensor %t, %int3, %int0, %int32, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %hi = torch.aten.slice.Tensor %t, %int3, %int32, %end, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.none, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %n = torch.aten.neg %hi : !torch.vtensor<[1,8,?,32],bf16> -> !torch.vtensor<[1,8,?,32],bf16>
  %halves = torch.prim.ListConstruct %n, %lo : (!torch.vtensor<[1,8,?,32],bf16>, !torch.vtensor<[1,8,?,32],bf16>) -> !torch.list<vtensor>
  %r = torch.aten.cat %halves, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %m0 = torch.aten.mul.Tensor %c, %t : !torch.vtensor<[1,1,?,64],bf16>, !torch.vtensor<[1,8,?,64],bf16> -> !torch.vtensor<[1,8,?,64],bf16>
  %m1 = torch.aten.mul.Tensor %r, %s : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,1,?,64],bf16> -> !torch.vtensor<[1,8,?,64],bf16>
  %y = torch.aten.add.Tensor %m0, %m1, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[1,8,?,64],bf16>, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  return %y : !torch.vtensor<[1,8,?,64],bf16>
}

// -----

// Kernels compute with f32, f16 and bf16.
// CHECK-LABEL: func.func @f64
// CHECK-NOT:     qfuse.rope
// CHECK:         torch.aten.cat
func.func @f64(%x: !torch.vtensor<[1,?,8,64],f64>, %cos: !torch.vtensor<[1,?,64],f64>, %sin: !torch.vtensor<[1,?,64],f64>) -> !torch.vtensor<[1,8,?,64],f64> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int16 = torch.constant.int 16
  %int32 = torch.constant.int 32
  %int-1 = torch.constant.int -1
  %end = torch.constant.int 9223372036854775807
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,64],f64>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,64],f64>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,64],f64>, !torch.int -> !torch.vtensor<[1,1,?,64],f64>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,64],f64>, !torch.int -> !torch.vtensor<[1,1,?,64],f64>
  %lo = torch.aten.slice.Tensor %t, %int3, %int0, %int32, %int1 : !torch.vtensor<[1,8,?,64],f64>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],f64>
  %hi = torch.aten.slice.Tensor %t, %int3, %int32, %end, %int1 : !torch.vtensor<[1,8,?,64],f64>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],f64>
  %n = torch.aten.neg %hi : !torch.vtensor<[1,8,?,32],f64> -> !torch.vtensor<[1,8,?,32],f64>
  %halves = torch.prim.ListConstruct %n, %lo : (!torch.vtensor<[1,8,?,32],f64>, !torch.vtensor<[1,8,?,32],f64>) -> !torch.list<vtensor>
  %r = torch.aten.cat %halves, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,64],f64>
  %m0 = torch.aten.mul.Tensor %t, %c : !torch.vtensor<[1,8,?,64],f64>, !torch.vtensor<[1,1,?,64],f64> -> !torch.vtensor<[1,8,?,64],f64>
  %m1 = torch.aten.mul.Tensor %r, %s : !torch.vtensor<[1,8,?,64],f64>, !torch.vtensor<[1,1,?,64],f64> -> !torch.vtensor<[1,8,?,64],f64>
  // expected-remark @+1 {{rope: refused at torch.aten.add.Tensor: x is tensor<1x?x8x64xf64>; rope needs floats with an even, static last dimension}}
  %y = torch.aten.add.Tensor %m0, %m1, %int1 : !torch.vtensor<[1,8,?,64],f64>, !torch.vtensor<[1,8,?,64],f64>, !torch.int -> !torch.vtensor<[1,8,?,64],f64>
  return %y : !torch.vtensor<[1,8,?,64],f64>
}

// -----

// Tables of a larger batch would repeat x.
// CHECK-LABEL: func.func @more_tables_than_x
// CHECK-NOT:     qfuse.rope
// CHECK:         torch.aten.cat
func.func @more_tables_than_x(%x: !torch.vtensor<[1,?,8,64],bf16>, %cos: !torch.vtensor<[2,?,64],bf16>, %sin: !torch.vtensor<[2,?,64],bf16>) -> !torch.vtensor<[2,8,?,64],bf16> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int16 = torch.constant.int 16
  %int32 = torch.constant.int 32
  %int-1 = torch.constant.int -1
  %end = torch.constant.int 9223372036854775807
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,64],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[2,?,64],bf16>, !torch.int -> !torch.vtensor<[2,1,?,64],bf16>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[2,?,64],bf16>, !torch.int -> !torch.vtensor<[2,1,?,64],bf16>
  %lo = torch.aten.slice.Tensor %t, %int3, %int0, %int32, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %hi = torch.aten.slice.Tensor %t, %int3, %int32, %end, %int1 : !torch.vtensor<[1,8,?,64],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,32],bf16>
  %n = torch.aten.neg %hi : !torch.vtensor<[1,8,?,32],bf16> -> !torch.vtensor<[1,8,?,32],bf16>
  %halves = torch.prim.ListConstruct %n, %lo : (!torch.vtensor<[1,8,?,32],bf16>, !torch.vtensor<[1,8,?,32],bf16>) -> !torch.list<vtensor>
  %r = torch.aten.cat %halves, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,64],bf16>
  %m0 = torch.aten.mul.Tensor %t, %c : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[2,1,?,64],bf16> -> !torch.vtensor<[2,8,?,64],bf16>
  %m1 = torch.aten.mul.Tensor %r, %s : !torch.vtensor<[1,8,?,64],bf16>, !torch.vtensor<[2,1,?,64],bf16> -> !torch.vtensor<[2,8,?,64],bf16>
  // expected-remark @+1 {{rope: refused at torch.aten.add.Tensor: cos or sin is tensor<2x?x64xbf16>; expected [B, T, 64] like x tensor<1x?x8x64xbf16>}}
  %y = torch.aten.add.Tensor %m0, %m1, %int1 : !torch.vtensor<[2,8,?,64],bf16>, !torch.vtensor<[2,8,?,64],bf16>, !torch.int -> !torch.vtensor<[2,8,?,64],bf16>
  return %y : !torch.vtensor<[2,8,?,64],bf16>
}
