// RUN: qfuse-opt --qfuse-fuse-epilogue --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-epilogue --split-input-file --verify-diagnostics %s

// What joins whom, where more than one thing is read, and the nearest that is refused.

// Two products meet: the wider one, whose value would cost more to write and read, is not written.
// CHECK-LABEL: func.func @wider_product_joins
// CHECK:         %[[B:.+]] = "qfuse.matmul"(%arg0, %arg2) ({
// CHECK:         "qfuse.matmul"(%arg0, %arg1, %[[B]]) ({
// CHECK:           arith.addf
// CHECK:         maps = ["[M,N]"]
// CHECK-NEXT:    return
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x512xbf16>
!z = tensor<?x512xf32>
func.func @wider_product_joins(%x: !x, %w: !w, %v: !w) -> !z {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !z
  %1 = "qfuse.matmul"(%x, %v) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired at qfuse.add}}
  %2 = "qfuse.add"(%0, %1) : (!z, !y) -> !z
  return %2 : !z
}

// -----

// Two products meet, and others read the second: the first, which nobody else reads, joins.
// CHECK-LABEL: func.func @unread_product_joins
// CHECK:         %[[B:.+]] = "qfuse.matmul"(%arg0, %arg2) ({
// CHECK:         %[[S:.+]] = "qfuse.matmul"(%arg0, %arg1, %[[B]]) ({
// CHECK:         return %[[S]], %[[B]]
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x512xbf16>
!z = tensor<?x512xf32>
func.func @unread_product_joins(%x: !x, %w: !w, %v: !w) -> (!y, !y) {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.matmul"(%x, %v) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired at qfuse.add}}
  %2 = "qfuse.add"(%0, %1) : (!y, !y) -> !y
  return %2, %1 : !y, !y
}

// -----

// The residual is the input of the product, which it reads a second time.
// CHECK-LABEL: func.func @residual_is_the_input
// CHECK:         "qfuse.matmul"(%arg0, %arg1, %arg0) ({
// CHECK:         maps = ["[M,N]"]
// CHECK-NEXT:    return
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x512xbf16>
!z = tensor<?x512xf32>
func.func @residual_is_the_input(%x: !x, %w: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %1 = "qfuse.add"(%0, %x) : (!y, !x) -> !y
  return %1 : !y
}

// -----

// An f32 residual makes an f32 sum of the rounded product; the cast back rounds once more.
// CHECK-LABEL: func.func @promotion_and_back
// CHECK:         ^bb0(%[[ACC:.+]]: f32, %[[R:.+]]: f32):
// CHECK-NEXT:      %[[T:.+]] = arith.truncf %[[ACC]] : f32 to bf16
// CHECK-NEXT:      %[[Y:.+]] = arith.extf %[[T]]
// CHECK-NEXT:      %[[S:.+]] = arith.addf %[[Y]], %[[R]]
// CHECK-NEXT:      "qfuse.yield"(%[[S]])
// CHECK:         -> tensor<?x512xbf16>
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x512xbf16>
!z = tensor<?x512xf32>
func.func @promotion_and_back(%x: !x, %w: !w, %r: !z) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %1 = "qfuse.add"(%0, %r) : (!y, !z) -> !z
  // expected-remark @+1 {{epilogue-residual-unary: fired at qfuse.cast}}
  %2 = "qfuse.cast"(%1) : (!z) -> !y
  return %2 : !y
}

// -----

// A bias of one element is a scalar, one of [M,1] a value per row: neither is read as [N].
// CHECK-LABEL: func.func @short_biases
// CHECK:         maps = ["[]", "[]", "[M,1]"]
// CHECK-NEXT:    return
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x512xbf16>
!z = tensor<?x512xf32>
func.func @short_biases(%x: !x, %w: !w, %a: tensor<1xbf16>, %b: tensor<1x1xbf16>, %c: tensor<?x1xbf16>) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-bias: fired}}
  %1 = "qfuse.add"(%0, %a) : (!y, tensor<1xbf16>) -> !y
  // expected-remark @+1 {{epilogue-bias: fired}}
  %2 = "qfuse.add"(%b, %1) : (tensor<1x1xbf16>, !y) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %3 = "qfuse.add"(%2, %c) : (!y, tensor<?x1xbf16>) -> !y
  return %3 : !y
}

// -----

// A residual of higher rank broadcasts the product up; so does one of more rows.
// CHECK-LABEL: func.func @broadcast_up_in_rank
// CHECK:         maps = []
// CHECK:         "qfuse.add"
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x512xbf16>
!z = tensor<?x512xf32>
func.func @broadcast_up_in_rank(%x: !x, %w: !w, %r: tensor<4x1x512xbf16>) -> tensor<4x?x512xbf16> {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: refused at qfuse.add: the result tensor<4x?x512xbf16> is broadcast up from the product's tensor<?x512xbf16>; reshape the other operand}}
  %1 = "qfuse.add"(%0, %r) : (!y, tensor<4x1x512xbf16>) -> tensor<4x?x512xbf16>
  return %1 : tensor<4x?x512xbf16>
}

// -----

// The other operand is made of the product by something that does not join.
// CHECK-LABEL: func.func @operand_made_of_the_product
// CHECK:         maps = []
// CHECK:         "qfuse.add"
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x512xbf16>
!z = tensor<?x512xf32>
!q = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
func.func @operand_made_of_the_product(%x: !x, %w: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.quantize"(%0) : (!y) -> !q
  %2 = "qfuse.dequantize"(%1) : (!q) -> !y
  // expected-remark @+1 {{refused at qfuse.add: the other operand is made by qfuse.dequantize, behind qfuse.quantize, which reads the product as well; make it before the product}}
  %3 = "qfuse.add"(%0, %2) : (!y, !y) -> !y
  return %3 : !y
}

// -----

// An operand that is made late is waited for, if nobody wants the product before.
// CHECK-LABEL: func.func @operand_made_late
// CHECK:         %[[S:.+]] = "qfuse.rms_norm"
// CHECK-NEXT:    %[[R:.+]]:2 = "qfuse.matmul"(%arg0, %arg1, %[[S]]) ({
// CHECK:         %[[N:.+]] = "qfuse.rms_norm"(%[[R]]#0
// CHECK:         return %[[R]]#1, %[[N]]
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x512xbf16>
!z = tensor<?x512xf32>
func.func @operand_made_late(%x: !x, %w: !w, %g: tensor<512xbf16>) -> (!y, !y) {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = "qfuse.rms_norm"(%x, %g) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x
  %2 = "qfuse.rms_norm"(%0, %g) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!y, tensor<512xbf16>) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %3 = "qfuse.add"(%0, %1) : (!y, !x) -> !y
  return %3, %2 : !y, !y
}

// -----

// A write in place between the product and its reader, to what may be the residual's memory.
// CHECK-LABEL: func.func @write_in_between
// CHECK:         maps = []
// CHECK:         "qfuse.add"
!t = !torch.vtensor<[?,512],bf16>
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x512xbf16>
!z = tensor<?x512xf32>
func.func @write_in_between(%x: !x, %w: !w, %m: !torch.tensor<[?,512],bf16>) -> !y {
  %t = torch.copy.to_vtensor %m : !t
  %r = torch_c.to_builtin_tensor %t : !t -> !y
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  %1 = torch.aten.relu_ %m : !torch.tensor<[?,512],bf16> -> !torch.tensor<[?,512],bf16>
  // expected-remark @+1 {{refused at qfuse.add: torch.aten.relu_ between the product and qfuse.add may write to what they read; functionalize the graph}}
  %2 = "qfuse.add"(%0, %r) : (!y, !y) -> !y
  return %2 : !y
}

// -----

// A write before the product, or behind the reader, changes nothing for them.
// CHECK-LABEL: func.func @writes_around
// CHECK:         maps = ["[M,N]"]
!t = !torch.vtensor<[?,512],bf16>
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x512xbf16>
!z = tensor<?x512xf32>
func.func @writes_around(%x: !x, %w: !w, %m: !torch.tensor<[?,512],bf16>) -> !y {
  %1 = torch.aten.relu_ %m : !torch.tensor<[?,512],bf16> -> !torch.tensor<[?,512],bf16>
  %t = torch.copy.to_vtensor %m : !t
  %r = torch_c.to_builtin_tensor %t : !t -> !y
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %2 = "qfuse.add"(%0, %r) : (!y, !y) -> !y
  %3 = torch.aten.relu_ %m : !torch.tensor<[?,512],bf16> -> !torch.tensor<[?,512],bf16>
  return %2 : !y
}

// -----

// A seventh operand has no place.
// CHECK-LABEL: func.func @seventh_operand
// CHECK:         maps = ["[M,N]", "[M,N]", "[M,N]", "[M,N]", "[M,N]", "[M,N]"]
// CHECK:         "qfuse.add"(%{{.+}}, %arg8)
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x512xbf16>
!z = tensor<?x512xf32>
func.func @seventh_operand(%x: !x, %w: !w, %r0: !y, %r1: !y, %r2: !y, %r3: !y, %r4: !y, %r5: !y, %r6: !y) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %1 = "qfuse.add"(%0, %r0) : (!y, !y) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %2 = "qfuse.add"(%1, %r1) : (!y, !y) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %3 = "qfuse.add"(%2, %r2) : (!y, !y) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %4 = "qfuse.add"(%3, %r3) : (!y, !y) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %5 = "qfuse.add"(%4, %r4) : (!y, !y) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %6 = "qfuse.add"(%5, %r5) : (!y, !y) -> !y
  // expected-remark @+1 {{refused at qfuse.add: the epilogue already has 6 extra operands}}
  %7 = "qfuse.add"(%6, %r6) : (!y, !y) -> !y
  return %7 : !y
}

// -----

// A fifth result has no place; what reads the product then reads it from memory.
// CHECK-LABEL: func.func @fifth_result
// CHECK:         %[[R:.+]]:4 = "qfuse.matmul"
// CHECK:         "qfuse.add"(%[[R]]#0, %arg5)
!x = tensor<?x512xbf16>
!w = tensor<512x512xbf16>
!y = tensor<?x512xbf16>
!z = tensor<?x512xf32>
func.func @fifth_result(%x: !x, %w: !w, %b0: tensor<512xbf16>, %b1: tensor<512xbf16>, %b2: tensor<512xbf16>, %b3: tensor<512xbf16>) -> (!y, !y, !y, !y, !y) {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-bias: fired}}
  %1 = "qfuse.add"(%0, %b0) : (!y, tensor<512xbf16>) -> !y
  // expected-remark @+1 {{epilogue-bias: fired}}
  %2 = "qfuse.add"(%0, %b1) : (!y, tensor<512xbf16>) -> !y
  // expected-remark @+1 {{epilogue-bias: fired}}
  %3 = "qfuse.add"(%0, %b2) : (!y, tensor<512xbf16>) -> !y
  // expected-remark @+1 {{refused at qfuse.add: others read the product, too, and it already has 4 results; let them read the fused value}}
  %4 = "qfuse.add"(%0, %b3) : (!y, tensor<512xbf16>) -> !y
  return %0, %1, %2, %3, %4 : !y, !y, !y, !y, !y
}

// -----

// A residual per token is no operand of a product of experts, whose rows have another order.
// CHECK-LABEL: func.func @residual_of_tokens
// CHECK:         maps = []
// CHECK:         "qfuse.add"
!x = tensor<?x64xbf16>
!w = tensor<4x128x64xbf16>
!y = tensor<?x2x128xbf16>
func.func @residual_of_tokens(%x: !x, %w: !w, %indptr: tensor<5xi32>, %tokens: tensor<?x2xi32>, %r: tensor<?x1x128xbf16>) -> !y {
  %0 = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 128>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, tensor<5xi32>, tensor<?x2xi32>) -> !y
  // expected-remark @+1 {{refused at qfuse.add: operand tensor<?x1x128xbf16> is no [N] and no scalar, and the rows of tensor<?x2x128xbf16> are in the order of experts, not of tokens; apply it to the result of qfuse.combine}}
  %1 = "qfuse.add"(%0, %r) : (!y, tensor<?x1x128xbf16>) -> !y
  return %1 : !y
}

// -----

// Results of different widths are made apart.
// CHECK-LABEL: func.func @results_of_different_widths
// CHECK:         maps = []
// CHECK:         "qfuse.mul"
!x = tensor<?x512xbf16>
!w = tensor<257x512xbf16>
!y = tensor<?x256xbf16>
func.func @results_of_different_widths(%x: !x, %w: !w) -> !y {
  %0:2 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a, %b) : (f32, f32) -> ()
  }) {parts = array<i64: 256, 1>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!x, !w) -> (!y, tensor<?x1xbf16>)
  // expected-remark @+1 {{refused at qfuse.mul: it reads results tensor<?x256xbf16> and tensor<?x1xbf16> of one product, which are made apart}}
  %1 = "qfuse.mul"(%0#0, %0#1) : (!y, tensor<?x1xbf16>) -> !y
  return %1 : !y
}
