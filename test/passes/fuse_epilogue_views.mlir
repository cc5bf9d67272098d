// RUN: qfuse-opt --qfuse-fuse-epilogue --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-epilogue --split-input-file --verify-diagnostics %s

// Reshapes, casts and transposes between a product and what reads it.

// A reshape that joins rows is applied to the fused result; the residual is reshaped to the product.
// CHECK-LABEL: func.func @rows_are_joined
// CHECK:         %[[R:.+]] = torch.aten.reshape
// CHECK:         %[[S:.+]] = torch_c.to_builtin_tensor %[[R]] : !torch.vtensor<[2,?,512],f32> -> tensor<2x?x512xf32>
// CHECK:         %[[P:.+]] = "qfuse.matmul"(%{{.+}}, %{{.+}}, %{{.+}}, %[[S]]) ({
// CHECK:         maps = ["[N]", "[M,N]"]
// CHECK-SAME:    -> tensor<2x?x512xf32>
// CHECK:         %[[T:.+]] = torch_c.from_builtin_tensor %[[P]]
// CHECK:         %[[V:.+]] = torch.aten.view %[[T]], %{{.+}} : !torch.vtensor<[2,?,512],f32>, !torch.list<int> -> !torch.vtensor<[?,512],f32>
// CHECK:         torch_c.to_builtin_tensor %[[V]]
// CHECK-NOT:     qfuse.add
!x = tensor<2x?x64xbf16>
!w = tensor<512x64xbf16>
!y = tensor<2x?x512xbf16>
!ty = !torch.vtensor<[2,?,512],bf16>
!v = tensor<?x512xbf16>
!tv = !torch.vtensor<[?,512],bf16>
func.func @rows_are_joined(%x: !x, %w: !w, %b: tensor<512xbf16>, %r: tensor<?x512xf32>) -> tensor<?x512xf32> {
  %im1 = torch.constant.int -1
  %i512 = torch.constant.int 512
  %shape = torch.prim.ListConstruct %im1, %i512 : (!torch.int, !torch.int) -> !torch.list<int>
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %t = torch_c.from_builtin_tensor %0 : !y -> !ty
  %u = torch.aten.view %t, %shape : !ty, !torch.list<int> -> !tv
  %v = torch_c.to_builtin_tensor %u : !tv -> !v
  // expected-remark @+2 {{epilogue-view: fired at qfuse.add}}
  // expected-remark @+1 {{epilogue-bias: fired at qfuse.add}}
  %1 = "qfuse.add"(%v, %b) : (!v, tensor<512xbf16>) -> !v
  // expected-remark @+2 {{epilogue-view: fired at qfuse.add}}
  // expected-remark @+1 {{epilogue-residual-binary: fired at qfuse.add}}
  %2 = "qfuse.add"(%1, %r) : (!v, tensor<?x512xf32>) -> tensor<?x512xf32>
  return %2 : tensor<?x512xf32>
}

// -----

// An operation on the product alone may be applied before any reshape, also into heads.
// CHECK-LABEL: func.func @columns_are_split
// CHECK:         math.tanh
// CHECK:         torch.aten.view
// CHECK-NOT:     qfuse.tanh
!x = tensor<2x?x64xbf16>
!w = tensor<512x64xbf16>
!y = tensor<2x?x512xbf16>
!ty = !torch.vtensor<[2,?,512],bf16>
!v = tensor<?x512xbf16>
!tv = !torch.vtensor<[?,512],bf16>
func.func @columns_are_split(%x: !x, %w: !w) -> tensor<2x?x8x64xbf16> {
  %i2 = torch.constant.int 2
  %im1 = torch.constant.int -1
  %i8 = torch.constant.int 8
  %i64 = torch.constant.int 64
  %shape = torch.prim.ListConstruct %i2, %im1, %i8, %i64 : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %t = torch_c.from_builtin_tensor %0 : !y -> !ty
  %u = torch.aten.view %t, %shape : !ty, !torch.list<int> -> !torch.vtensor<[2,?,8,64],bf16>
  %v = torch_c.to_builtin_tensor %u : !torch.vtensor<[2,?,8,64],bf16> -> tensor<2x?x8x64xbf16>
  // expected-remark @+2 {{epilogue-view: fired at qfuse.tanh}}
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.tanh}}
  %1 = "qfuse.tanh"(%v) : (tensor<2x?x8x64xbf16>) -> tensor<2x?x8x64xbf16>
  return %1 : tensor<2x?x8x64xbf16>
}

// -----

// What is read per column of a head has no place among the columns of the product.
// CHECK-LABEL: func.func @operand_of_other_columns
// CHECK:         torch.aten.view
// CHECK:         "qfuse.mul"
!x = tensor<2x?x64xbf16>
!w = tensor<512x64xbf16>
!y = tensor<2x?x512xbf16>
!ty = !torch.vtensor<[2,?,512],bf16>
!v = tensor<?x512xbf16>
!tv = !torch.vtensor<[?,512],bf16>
func.func @operand_of_other_columns(%x: !x, %w: !w, %g: tensor<64xbf16>) -> tensor<2x?x8x64xbf16> {
  %i2 = torch.constant.int 2
  %im1 = torch.constant.int -1
  %i8 = torch.constant.int 8
  %i64 = torch.constant.int 64
  %shape = torch.prim.ListConstruct %i2, %im1, %i8, %i64 : (!torch.int, !torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %t = torch_c.from_builtin_tensor %0 : !y -> !ty
  %u = torch.aten.view %t, %shape : !ty, !torch.list<int> -> !torch.vtensor<[2,?,8,64],bf16>
  %v = torch_c.to_builtin_tensor %u : !torch.vtensor<[2,?,8,64],bf16> -> tensor<2x?x8x64xbf16>
  // expected-remark @+1 {{epilogue-view: refused at qfuse.mul: the reshape from tensor<2x?x512xbf16> to tensor<2x?x8x64xbf16> splits or joins columns, and the operation reads tensor<64xbf16> beside it; apply the operation before the reshape}}
  %1 = "qfuse.mul"(%v, %g) : (tensor<2x?x8x64xbf16>, tensor<64xbf16>) -> tensor<2x?x8x64xbf16>
  return %1 : tensor<2x?x8x64xbf16>
}

// -----

// A bias of the rank of the view would broadcast the product up; it is one of [N].
// CHECK-LABEL: func.func @bias_of_higher_rank
// CHECK:         torch.aten.reshape %{{.+}} : !torch.vtensor<[1,1,512],bf16>, !torch.list<int> -> !torch.vtensor<[512],bf16>
// CHECK:         maps = ["[N]"]
// CHECK:         torch.aten.view %{{.+}} -> !torch.vtensor<[1,?,512],bf16>
func.func @bias_of_higher_rank(%x: tensor<?x64xbf16>, %w: tensor<512x64xbf16>, %b: tensor<1x1x512xbf16>) -> tensor<1x?x512xbf16> {
  %i1 = torch.constant.int 1
  %im1 = torch.constant.int -1
  %i512 = torch.constant.int 512
  %shape = torch.prim.ListConstruct %i1, %im1, %i512 : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x64xbf16>, tensor<512x64xbf16>) -> tensor<?x512xbf16>
  %t = torch_c.from_builtin_tensor %0 : tensor<?x512xbf16> -> !torch.vtensor<[?,512],bf16>
  %u = torch.aten.view %t, %shape : !torch.vtensor<[?,512],bf16>, !torch.list<int> -> !torch.vtensor<[1,?,512],bf16>
  %v = torch_c.to_builtin_tensor %u : !torch.vtensor<[1,?,512],bf16> -> tensor<1x?x512xbf16>
  // expected-remark @+2 {{epilogue-view: fired}}
  // expected-remark @+1 {{epilogue-bias: fired}}
  %1 = "qfuse.add"(%v, %b) : (tensor<1x?x512xbf16>, tensor<1x1x512xbf16>) -> tensor<1x?x512xbf16>
  return %1 : tensor<1x?x512xbf16>
}

// -----

// What reads the product alone may be applied before a transpose, too, and a number with it.
// CHECK-LABEL: func.func @transpose
// CHECK:         "qfuse.matmul"
// CHECK:           arith.maximumf
// CHECK:           arith.mulf
// CHECK:         (tensor<2x?x64xbf16>, tensor<512x64xbf16>) -> tensor<2x?x512xbf16>
// CHECK-NOT:     "qfuse.
// CHECK:         torch.aten.transpose.int
// CHECK-NOT:     "qfuse.
!x = tensor<2x?x64xbf16>
!w = tensor<512x64xbf16>
!y = tensor<2x?x512xbf16>
!ty = !torch.vtensor<[2,?,512],bf16>
!v = tensor<?x512xbf16>
!tv = !torch.vtensor<[?,512],bf16>
func.func @transpose(%x: !x, %w: !w) -> tensor<?x2x512xbf16> {
  %i0 = torch.constant.int 0
  %i1 = torch.constant.int 1
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %t = torch_c.from_builtin_tensor %0 : !y -> !ty
  %u = torch.aten.transpose.int %t, %i0, %i1 : !ty, !torch.int, !torch.int -> !torch.vtensor<[?,2,512],bf16>
  %v = torch_c.to_builtin_tensor %u : !torch.vtensor<[?,2,512],bf16> -> tensor<?x2x512xbf16>
  // expected-remark @+2 {{epilogue-view: fired at qfuse.relu}}
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.relu: saves 1 launch, 4096 B a row}}
  %1 = "qfuse.relu"(%v) : (tensor<?x2x512xbf16>) -> tensor<?x2x512xbf16>
  %c = arith.constant dense<3.0> : tensor<f32>
  // expected-remark @+2 {{epilogue-view: fired at qfuse.mul}}
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.mul}}
  %2 = "qfuse.mul"(%1, %c) : (tensor<?x2x512xbf16>, tensor<f32>) -> tensor<?x2x512xbf16>
  return %2 : tensor<?x2x512xbf16>
}

// -----

// A transpose moves elements, and those of another operand would have to follow.
// CHECK-LABEL: func.func @operand_behind_a_transpose
// CHECK:         torch.aten.transpose.int
// CHECK:         "qfuse.add"
!x = tensor<2x?x64xbf16>
!w = tensor<512x64xbf16>
!y = tensor<2x?x512xbf16>
!ty = !torch.vtensor<[2,?,512],bf16>
!v = tensor<?x512xbf16>
!tv = !torch.vtensor<[?,512],bf16>
func.func @operand_behind_a_transpose(%x: !x, %w: !w, %b: tensor<512xbf16>) -> tensor<?x2x512xbf16> {
  %i0 = torch.constant.int 0
  %i1 = torch.constant.int 1
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %t = torch_c.from_builtin_tensor %0 : !y -> !ty
  %u = torch.aten.transpose.int %t, %i0, %i1 : !ty, !torch.int, !torch.int -> !torch.vtensor<[?,2,512],bf16>
  %v = torch_c.to_builtin_tensor %u : !torch.vtensor<[?,2,512],bf16> -> tensor<?x2x512xbf16>
  // expected-remark @+1 {{epilogue-view: refused at qfuse.add: torch.aten.transpose.int stands between the product and its reader, and moves elements, but not those of the other operand; apply the operation before it}}
  %1 = "qfuse.add"(%v, %b) : (tensor<?x2x512xbf16>, tensor<512xbf16>) -> tensor<?x2x512xbf16>
  return %1 : tensor<?x2x512xbf16>
}

// -----

// Two reshapes, one after the other, and a cast between them; the view has another reader.
// CHECK-LABEL: func.func @reshapes_and_a_cast
// CHECK:         %[[P:.+]]:2 = "qfuse.matmul"
// CHECK:           math.exp
// CHECK:         -> (tensor<2x?x512xbf16>, tensor<2x?x512xf32>)
// CHECK-NOT:     qfuse.cast
// CHECK-NOT:     qfuse.sigmoid
!x = tensor<2x?x64xbf16>
!w = tensor<512x64xbf16>
!y = tensor<2x?x512xbf16>
!ty = !torch.vtensor<[2,?,512],bf16>
!v = tensor<?x512xbf16>
!tv = !torch.vtensor<[?,512],bf16>
func.func @reshapes_and_a_cast(%x: !x, %w: !w) -> (!v, tensor<2x?x512xf32>) {
  %im1 = torch.constant.int -1
  %i512 = torch.constant.int 512
  %shape = torch.prim.ListConstruct %im1, %i512 : (!torch.int, !torch.int) -> !torch.list<int>
  %i2 = torch.constant.int 2
  %back = torch.prim.ListConstruct %i2, %im1, %i512 : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %t = torch_c.from_builtin_tensor %0 : !y -> !ty
  %u = torch.aten.view %t, %shape : !ty, !torch.list<int> -> !tv
  %v = torch_c.to_builtin_tensor %u : !tv -> !v
  // expected-remark @+2 {{epilogue-view: fired at qfuse.cast}}
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.cast}}
  %1 = "qfuse.cast"(%v) : (!v) -> tensor<?x512xf32>
  %2 = torch_c.from_builtin_tensor %1 : tensor<?x512xf32> -> !torch.vtensor<[?,512],f32>
  %3 = torch.aten.view %2, %back : !torch.vtensor<[?,512],f32>, !torch.list<int> -> !torch.vtensor<[2,?,512],f32>
  %4 = torch_c.to_builtin_tensor %3 : !torch.vtensor<[2,?,512],f32> -> tensor<2x?x512xf32>
  // expected-remark @+3 {{epilogue-view: fired at qfuse.sigmoid}}
  // expected-remark @+2 {{epilogue-view: fired at qfuse.sigmoid}}
  // expected-remark @+1 {{epilogue-activation: fired at qfuse.sigmoid}}
  %5 = "qfuse.sigmoid"(%4) : (tensor<2x?x512xf32>) -> tensor<2x?x512xf32>
  return %v, %5 : !v, tensor<2x?x512xf32>
}
