// RUN: qfuse-opt --qfuse-fuse-rope --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-rope --split-input-file --verify-diagnostics %s

// Rotations that stay with torch, each with what it is and the nearest that is fused.

// GPT-NeoX, Phi: the first columns of a head are rotated, the others pass.
// CHECK-LABEL: func.func @partial
// CHECK-NOT:     qfuse.rope
// CHECK:         torch.aten.cat
func.func @partial(%x: !torch.vtensor<[1,?,8,16],bf16>, %cos: !torch.vtensor<[1,?,8],bf16>, %sin: !torch.vtensor<[1,?,8],bf16>) -> !torch.vtensor<[1,8,?,16],bf16> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int4 = torch.constant.int 4
  %int8 = torch.constant.int 8
  %int-1 = torch.constant.int -1
  %int-2 = torch.constant.int -2
  %end = torch.constant.int 9223372036854775807
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,16],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,8],bf16>, !torch.int -> !torch.vtensor<[1,1,?,8],bf16>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,8],bf16>, !torch.int -> !torch.vtensor<[1,1,?,8],bf16>
  %rot = torch.aten.slice.Tensor %t, %int3, %int0, %int8, %int1 : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %pass = torch.aten.slice.Tensor %t, %int3, %int8, %end, %int1 : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %lo = torch.aten.slice.Tensor %rot, %int3, %int0, %int4, %int1 : !torch.vtensor<[1,8,?,8],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,4],bf16>
  %hi = torch.aten.slice.Tensor %rot, %int3, %int4, %end, %int1 : !torch.vtensor<[1,8,?,8],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,4],bf16>
  %n = torch.aten.neg %hi : !torch.vtensor<[1,8,?,4],bf16> -> !torch.vtensor<[1,8,?,4],bf16>
  %halves = torch.prim.ListConstruct %n, %lo : (!torch.vtensor<[1,8,?,4],bf16>, !torch.vtensor<[1,8,?,4],bf16>) -> !torch.list<vtensor>
  %r = torch.aten.cat %halves, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %m0 = torch.aten.mul.Tensor %rot, %c : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,1,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  %m1 = torch.aten.mul.Tensor %r, %s : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,1,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  // expected-remark @+1 {{rope: refused at torch.aten.add.Tensor: 8 of 16 columns of each head are rotated, qfuse.rope rotates all; the nearest is a rotation of whole heads, partial_rotary_factor 1}}
  %y0 = torch.aten.add.Tensor %m0, %m1, %int1 : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,8,?,8],bf16>, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %parts = torch.prim.ListConstruct %y0, %pass : (!torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,8,?,8],bf16>) -> !torch.list<vtensor>
  %y = torch.aten.cat %parts, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  return %y : !torch.vtensor<[1,8,?,16],bf16>
}

// -----

// Heads before tokens, and no transpose to undo.
// CHECK-LABEL: func.func @heads_first
// CHECK-NOT:     qfuse.rope
// CHECK:         torch.aten.cat
func.func @heads_first(%x: !torch.vtensor<[1,8,?,16],bf16>, %cos: !torch.vtensor<[1,?,16],bf16>, %sin: !torch.vtensor<[1,?,16],bf16>) -> !torch.vtensor<[1,8,?,16],bf16> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int4 = torch.constant.int 4
  %int8 = torch.constant.int 8
  %int-1 = torch.constant.int -1
  %int-2 = torch.constant.int -2
  %end = torch.constant.int 9223372036854775807
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,16],bf16>, !torch.int -> !torch.vtensor<[1,1,?,16],bf16>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,16],bf16>, !torch.int -> !torch.vtensor<[1,1,?,16],bf16>
  %lo = torch.aten.slice.Tensor %x, %int3, %int0, %int8, %int1 : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %hi = torch.aten.slice.Tensor %x, %int3, %int8, %end, %int1 : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %n = torch.aten.neg %hi : !torch.vtensor<[1,8,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  %halves = torch.prim.ListConstruct %n, %lo : (!torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,8,?,8],bf16>) -> !torch.list<vtensor>
  %r = torch.aten.cat %halves, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  %m0 = torch.aten.mul.Tensor %x, %c : !torch.vtensor<[1,8,?,16],bf16>, !torch.vtensor<[1,1,?,16],bf16> -> !torch.vtensor<[1,8,?,16],bf16>
  %m1 = torch.aten.mul.Tensor %r, %s : !torch.vtensor<[1,8,?,16],bf16>, !torch.vtensor<[1,1,?,16],bf16> -> !torch.vtensor<[1,8,?,16],bf16>
  // expected-remark @+1 {{rope: refused at torch.aten.add.Tensor: what is rotated is an argument, and qfuse.rope takes tokens before heads; rotate x.transpose(1, 2) of x [B, T, H, D]}}
  %y = torch.aten.add.Tensor %m0, %m1, %int1 : !torch.vtensor<[1,8,?,16],bf16>, !torch.vtensor<[1,8,?,16],bf16>, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  return %y : !torch.vtensor<[1,8,?,16],bf16>
}

// -----

// Cohere, Helium: neighbors are rotated instead of halves; products commute.
// CHECK-LABEL: func.func @interleaved
// CHECK-NOT:     qfuse.rope
// CHECK:         torch.aten.stack
func.func @interleaved(%x: !torch.vtensor<[1,?,8,16],bf16>, %cos: !torch.vtensor<[1,?,16],bf16>, %sin: !torch.vtensor<[1,?,16],bf16>) -> !torch.vtensor<[1,8,?,16],bf16> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int4 = torch.constant.int 4
  %int8 = torch.constant.int 8
  %int-1 = torch.constant.int -1
  %int-2 = torch.constant.int -2
  %end = torch.constant.int 9223372036854775807
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,16],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,16],bf16>, !torch.int -> !torch.vtensor<[1,1,?,16],bf16>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,16],bf16>, !torch.int -> !torch.vtensor<[1,1,?,16],bf16>
  %even = torch.aten.slice.Tensor %t, %int3, %int0, %end, %int2 : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %odd = torch.aten.slice.Tensor %t, %int3, %int1, %end, %int2 : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %n = torch.aten.neg %odd : !torch.vtensor<[1,8,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  %pairs = torch.prim.ListConstruct %n, %even : (!torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,8,?,8],bf16>) -> !torch.list<vtensor>
  %stacked = torch.aten.stack %pairs, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,8,2],bf16>
  %r = torch.aten.flatten.using_ints %stacked, %int-2, %int-1 : !torch.vtensor<[1,8,?,8,2],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  %m0 = torch.aten.mul.Tensor %t, %c : !torch.vtensor<[1,8,?,16],bf16>, !torch.vtensor<[1,1,?,16],bf16> -> !torch.vtensor<[1,8,?,16],bf16>
  %m1 = torch.aten.mul.Tensor %s, %r : !torch.vtensor<[1,1,?,16],bf16>, !torch.vtensor<[1,8,?,16],bf16> -> !torch.vtensor<[1,8,?,16],bf16>
  // expected-remark @+1 {{rope: refused at torch.aten.add.Tensor: neighboring columns are rotated (the interleaved form), and qfuse.rope rotates halves; the nearest is rotate_half of the halves of a head, with the columns of its weights sorted so}}
  %y = torch.aten.add.Tensor %m0, %m1, %int1 : !torch.vtensor<[1,8,?,16],bf16>, !torch.vtensor<[1,8,?,16],bf16>, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  return %y : !torch.vtensor<[1,8,?,16],bf16>
}

// -----

// The same as torch.compile has it.
// CHECK-LABEL: func.func @interleaved_as_traced
// CHECK-NOT:     qfuse.rope
// CHECK:         torch.aten.cat
func.func @interleaved_as_traced(%x: !torch.vtensor<[1,?,8,16],bf16>, %cos: !torch.vtensor<[1,?,16],bf16>, %sin: !torch.vtensor<[1,?,16],bf16>) -> !torch.vtensor<[1,8,?,16],bf16> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int4 = torch.constant.int 4
  %int8 = torch.constant.int 8
  %int-1 = torch.constant.int -1
  %int-2 = torch.constant.int -2
  %end = torch.constant.int 9223372036854775807
  %int16 = torch.constant.int 16
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,16],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,16],bf16>, !torch.int -> !torch.vtensor<[1,1,?,16],bf16>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,16],bf16>, !torch.int -> !torch.vtensor<[1,1,?,16],bf16>
  %even = torch.aten.slice.Tensor %t, %int3, %int0, %end, %int2 : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %odd = torch.aten.slice.Tensor %t, %int3, %int1, %end, %int2 : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %n = torch.aten.neg %odd : !torch.vtensor<[1,8,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  %n1 = torch.aten.unsqueeze %n, %int-1 : !torch.vtensor<[1,8,?,8],bf16>, !torch.int -> !torch.vtensor<[1,8,?,8,1],bf16>
  %e1 = torch.aten.unsqueeze %even, %int-1 : !torch.vtensor<[1,8,?,8],bf16>, !torch.int -> !torch.vtensor<[1,8,?,8,1],bf16>
  %pairs = torch.prim.ListConstruct %n1, %e1 : (!torch.vtensor<[1,8,?,8,1],bf16>, !torch.vtensor<[1,8,?,8,1],bf16>) -> !torch.list<vtensor>
  %stacked = torch.aten.cat %pairs, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,8,2],bf16>
  %shape = torch.prim.ListConstruct %int1, %int8, %int-1, %int16 : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %r = torch.aten.view %stacked, %shape : !torch.vtensor<[1,8,?,8,2],bf16>, !torch.list<int> -> !torch.vtensor<[1,8,?,16],bf16>
  %m0 = torch.aten.mul.Tensor %t, %c : !torch.vtensor<[1,8,?,16],bf16>, !torch.vtensor<[1,1,?,16],bf16> -> !torch.vtensor<[1,8,?,16],bf16>
  %m1 = torch.aten.mul.Tensor %r, %s : !torch.vtensor<[1,8,?,16],bf16>, !torch.vtensor<[1,1,?,16],bf16> -> !torch.vtensor<[1,8,?,16],bf16>
  // expected-remark @+1 {{rope: refused at torch.aten.add.Tensor: neighboring columns are rotated (the interleaved form), and qfuse.rope rotates halves; the nearest is rotate_half of the halves of a head, with the columns of its weights sorted so}}
  %y = torch.aten.add.Tensor %m0, %m1, %int1 : !torch.vtensor<[1,8,?,16],bf16>, !torch.vtensor<[1,8,?,16],bf16>, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  return %y : !torch.vtensor<[1,8,?,16],bf16>
}

// -----

// ERNIE: the same in f32.
// CHECK-LABEL: func.func @interleaved_in_f32
// CHECK-NOT:     qfuse.rope
// CHECK:         torch.aten.stack
func.func @interleaved_in_f32(%x: !torch.vtensor<[1,?,8,16],bf16>, %cos: !torch.vtensor<[1,?,16],f32>, %sin: !torch.vtensor<[1,?,16],f32>) -> !torch.vtensor<[1,8,?,16],f32> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int4 = torch.constant.int 4
  %int8 = torch.constant.int 8
  %int-1 = torch.constant.int -1
  %int-2 = torch.constant.int -2
  %end = torch.constant.int 9223372036854775807
  %f32 = torch.constant.int 6
  %false = torch.constant.bool false
  %none = torch.constant.none
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,16],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,16],f32>, !torch.int -> !torch.vtensor<[1,1,?,16],f32>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,16],f32>, !torch.int -> !torch.vtensor<[1,1,?,16],f32>
  %even = torch.aten.slice.Tensor %t, %int3, %int0, %end, %int2 : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %odd = torch.aten.slice.Tensor %t, %int3, %int1, %end, %int2 : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %n = torch.aten.neg %odd : !torch.vtensor<[1,8,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  %pairs = torch.prim.ListConstruct %n, %even : (!torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,8,?,8],bf16>) -> !torch.list<vtensor>
  %stacked = torch.aten.stack %pairs, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,8,2],bf16>
  %r = torch.aten.flatten.using_ints %stacked, %int-2, %int-1 : !torch.vtensor<[1,8,?,8,2],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  %t32 = torch.aten.to.dtype %t, %f32, %false, %false, %none : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,8,?,16],f32>
  %r32 = torch.aten.to.dtype %r, %f32, %false, %false, %none : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.bool, !torch.bool, !torch.none -> !torch.vtensor<[1,8,?,16],f32>
  %m0 = torch.aten.mul.Tensor %t32, %c : !torch.vtensor<[1,8,?,16],f32>, !torch.vtensor<[1,1,?,16],f32> -> !torch.vtensor<[1,8,?,16],f32>
  %m1 = torch.aten.mul.Tensor %r32, %s : !torch.vtensor<[1,8,?,16],f32>, !torch.vtensor<[1,1,?,16],f32> -> !torch.vtensor<[1,8,?,16],f32>
  // expected-remark @+1 {{rope: refused at torch.aten.add.Tensor: neighboring columns are rotated (the interleaved form), and qfuse.rope rotates halves; the nearest is rotate_half of the halves of a head, with the columns of its weights sorted so}}
  %y = torch.aten.add.Tensor %m0, %m1, %int1 : !torch.vtensor<[1,8,?,16],f32>, !torch.vtensor<[1,8,?,16],f32>, !torch.int -> !torch.vtensor<[1,8,?,16],f32>
  return %y : !torch.vtensor<[1,8,?,16],f32>
}

// -----

// gpt-oss: halves without rotate_half.
// CHECK-LABEL: func.func @chunks
// CHECK-NOT:     qfuse.rope
// CHECK:         torch.aten.cat
func.func @chunks(%x: !torch.vtensor<[1,?,8,16],bf16>, %cos: !torch.vtensor<[1,?,8],bf16>, %sin: !torch.vtensor<[1,?,8],bf16>) -> !torch.vtensor<[1,8,?,16],bf16> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int4 = torch.constant.int 4
  %int8 = torch.constant.int 8
  %int-1 = torch.constant.int -1
  %int-2 = torch.constant.int -2
  %end = torch.constant.int 9223372036854775807
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,16],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,8],bf16>, !torch.int -> !torch.vtensor<[1,1,?,8],bf16>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,8],bf16>, !torch.int -> !torch.vtensor<[1,1,?,8],bf16>
  %chunks = torch.aten.chunk %t, %int2, %int-1 : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.int -> !torch.list<vtensor>
  %parts:2 = torch.prim.ListUnpack %chunks : !torch.list<vtensor> -> !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,8,?,8],bf16>
  %m0 = torch.aten.mul.Tensor %parts#0, %c : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,1,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  %m1 = torch.aten.mul.Tensor %parts#1, %s : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,1,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  %m2 = torch.aten.mul.Tensor %parts#1, %c : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,1,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  %m3 = torch.aten.mul.Tensor %parts#0, %s : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,1,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  %lo = torch.aten.sub.Tensor %m0, %m1, %int1 : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,8,?,8],bf16>, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %hi = torch.aten.add.Tensor %m2, %m3, %int1 : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,8,?,8],bf16>, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %halves = torch.prim.ListConstruct %lo, %hi : (!torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,8,?,8],bf16>) -> !torch.list<vtensor>
  // expected-remark @+1 {{rope: refused at torch.aten.cat: the halves of each head are rotated apart and joined again; write it as x * cos + rotate_half(x) * sin, with cos and sin for all columns}}
  %y = torch.aten.cat %halves, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  return %y : !torch.vtensor<[1,8,?,16],bf16>
}

// -----

// a cos - 2 b sin is no rotation, and no remark says that it is one.
// CHECK-LABEL: func.func @scaled_chunks
// CHECK-NOT:     qfuse.rope
// CHECK:         torch.aten.cat
func.func @scaled_chunks(%x: !torch.vtensor<[1,?,8,16],bf16>, %cos: !torch.vtensor<[1,?,8],bf16>, %sin: !torch.vtensor<[1,?,8],bf16>) -> !torch.vtensor<[1,8,?,16],bf16> {
  %int0 = torch.constant.int 0
  %int1 = torch.constant.int 1
  %int2 = torch.constant.int 2
  %int3 = torch.constant.int 3
  %int4 = torch.constant.int 4
  %int8 = torch.constant.int 8
  %int-1 = torch.constant.int -1
  %int-2 = torch.constant.int -2
  %end = torch.constant.int 9223372036854775807
  %t = torch.aten.transpose.int %x, %int1, %int2 : !torch.vtensor<[1,?,8,16],bf16>, !torch.int, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  %c = torch.aten.unsqueeze %cos, %int1 : !torch.vtensor<[1,?,8],bf16>, !torch.int -> !torch.vtensor<[1,1,?,8],bf16>
  %s = torch.aten.unsqueeze %sin, %int1 : !torch.vtensor<[1,?,8],bf16>, !torch.int -> !torch.vtensor<[1,1,?,8],bf16>
  %chunks = torch.aten.chunk %t, %int2, %int-1 : !torch.vtensor<[1,8,?,16],bf16>, !torch.int, !torch.int -> !torch.list<vtensor>
  %parts:2 = torch.prim.ListUnpack %chunks : !torch.list<vtensor> -> !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,8,?,8],bf16>
  %m0 = torch.aten.mul.Tensor %parts#0, %c : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,1,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  %m1 = torch.aten.mul.Tensor %parts#1, %s : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,1,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  %m2 = torch.aten.mul.Tensor %parts#1, %c : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,1,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  %m3 = torch.aten.mul.Tensor %parts#0, %s : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,1,?,8],bf16> -> !torch.vtensor<[1,8,?,8],bf16>
  %lo = torch.aten.sub.Tensor %m0, %m1, %int2 : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,8,?,8],bf16>, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %hi = torch.aten.add.Tensor %m2, %m3, %int1 : !torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,8,?,8],bf16>, !torch.int -> !torch.vtensor<[1,8,?,8],bf16>
  %halves = torch.prim.ListConstruct %lo, %hi : (!torch.vtensor<[1,8,?,8],bf16>, !torch.vtensor<[1,8,?,8],bf16>) -> !torch.list<vtensor>
  %y = torch.aten.cat %halves, %int-1 : !torch.list<vtensor>, !torch.int -> !torch.vtensor<[1,8,?,16],bf16>
  return %y : !torch.vtensor<[1,8,?,16],bf16>
}
