// RUN: qfuse-opt --qfuse-fuse-epilogue --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-epilogue --split-input-file --verify-diagnostics %s

// A bias joins; the rounding of the product stays in between.
// CHECK-LABEL: func.func @bias
// CHECK-NEXT:    "qfuse.matmul"(%{{.*}}, %{{.*}}, %[[B:.+]]) ({
// CHECK-NEXT:    ^bb0(%[[ACC:.+]]: f32, %[[BIAS:.+]]: f32):
// CHECK-NEXT:      %[[R:.+]] = arith.truncf %[[ACC]] : f32 to bf16
// CHECK-NEXT:      %[[Y:.+]] = arith.extf %[[R]] : bf16 to f32
// CHECK-NEXT:      %[[S:.+]] = arith.addf %[[Y]], %[[BIAS]]
// CHECK-NEXT:      "qfuse.yield"(%[[S]])
// CHECK-NEXT:    maps = ["[N]"]
// CHECK-NOT:     "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @bias(%x: !xq, %w: !w, %b: tensor<1400xbf16>) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-bias: fired at qfuse.add: saves 1 launch, 5600 B a row}}
  %1 = "qfuse.add"(%0, %b) : (!y, tensor<1400xbf16>) -> !y
  return %1 : !y
}

// -----

// The operands of the add may come in the other order, and keep it.
// CHECK-LABEL: func.func @bias_on_the_left
// CHECK:         ^bb0(%[[ACC:.+]]: f32, %[[BIAS:.+]]: f32):
// CHECK:           %[[Y:.+]] = arith.extf
// CHECK-NEXT:      arith.addf %[[BIAS]], %[[Y]]
// CHECK:         maps = ["[N]"]
// CHECK-NOT:     "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @bias_on_the_left(%x: !xq, %w: !w, %b: tensor<1400xbf16>) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-bias: fired}}
  %1 = "qfuse.add"(%b, %0) : (tensor<1400xbf16>, !y) -> !y
  return %1 : !y
}

// -----

// A row [1,N] is read as a bias for all rows, and a residual may be a factor.
// CHECK-LABEL: func.func @row_and_factor
// CHECK:           arith.addf
// CHECK:           arith.mulf
// CHECK:         maps = ["[N]", "[M,N]"]
// CHECK-NOT:     "qfuse.add"
// CHECK-NOT:     "qfuse.mul"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @row_and_factor(%x: !xq, %w: !w, %b: tensor<1x1400xbf16>, %r: !y) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-bias: fired}}
  %1 = "qfuse.add"(%0, %b) : (!y, tensor<1x1400xbf16>) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %2 = "qfuse.mul"(%1, %r) : (!y, !y) -> !y
  return %2 : !y
}

// -----

// Either operand order, with the operands in their order.
// CHECK-LABEL: func.func @residual_on_the_left
// CHECK:         ^bb0(%{{.*}}: f32, %[[RES:.+]]: f32):
// CHECK:           arith.addf %[[RES]], %{{.*}}
// CHECK:         maps = ["[M,N]"]
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @residual_on_the_left(%x: !xq, %w: !w, %r: !y) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %1 = "qfuse.add"(%r, %0) : (!y, !y) -> !y
  return %1 : !y
}

// -----

// unary(binary(act(x.W + bias), residual)), all four stages.
// CHECK-LABEL: func.func @chain
// CHECK:         maps = ["[N]", "[M,N]"]
// CHECK-NEXT:    return
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @chain(%x: !xq, %w: !w, %b: tensor<1400xbf16>, %r: !y) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-bias: fired}}
  %1 = "qfuse.add"(%0, %b) : (!y, tensor<1400xbf16>) -> !y
  // expected-remark @+1 {{epilogue-activation: fired}}
  %2 = "qfuse.silu"(%1) : (!y) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %3 = "qfuse.mul"(%2, %r) : (!y, !y) -> !y
  // expected-remark @+1 {{epilogue-residual-unary: fired}}
  %4 = "qfuse.relu"(%3) : (!y) -> !y
  return %4 : !y
}

// -----

// No bias is needed before a residual; tanh and erf gelu are told apart.
// CHECK-LABEL: func.func @residual_without_bias_then_gelu
// CHECK:           math.tanh
// CHECK-NOT:       math.erf
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @residual_without_bias_then_gelu(%x: !xq, %w: !w, %r: !y) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %1 = "qfuse.add"(%0, %r) : (!y, !y) -> !y
  // expected-remark @+1 {{epilogue-residual-unary: fired}}
  %2 = "qfuse.gelu_tanh"(%1) : (!y) -> !y
  return %2 : !y
}

// -----

// The exact gelu stays exact.
// CHECK-LABEL: func.func @gelu_is_erf
// CHECK:           math.erf
// CHECK-NOT:       math.tanh
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @gelu_is_erf(%x: !xq, %w: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-activation: fired}}
  %1 = "qfuse.gelu"(%0) : (!y) -> !y
  return %1 : !y
}

// -----

// A per-row factor and a scalar have maps of their own.
// CHECK-LABEL: func.func @column_and_scalar
// CHECK:         maps = ["[M,1]", "[]"]
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @column_and_scalar(%x: !xq, %w: !w, %c: tensor<?x1xf32>, %s: tensor<f32>) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %1 = "qfuse.mul"(%0, %c) : (!y, tensor<?x1xf32>) -> !y
  // expected-remark @+1 {{epilogue-bias: fired}}
  %2 = "qfuse.mul"(%s, %1) : (tensor<f32>, !y) -> !y
  return %2 : !y
}

// -----

// An add that promotes to f32 keeps the rounding of the product and yields f32.
// CHECK-LABEL: func.func @promotion
// CHECK:           arith.truncf %{{.*}} : f32 to bf16
// CHECK:         -> tensor<?x1400xf32>
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @promotion(%x: !xq, %w: !w, %r: tensor<?x1400xf32>) -> tensor<?x1400xf32> {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %1 = "qfuse.add"(%0, %r) : (!y, tensor<?x1400xf32>) -> tensor<?x1400xf32>
  return %1 : tensor<?x1400xf32>
}

// -----

// Another reader of the product: it is computed once, and yields both values.
// CHECK-LABEL: func.func @two_readers
// CHECK:         %[[R:.+]]:2 = "qfuse.matmul"
// CHECK-NEXT:    ^bb0(%[[ACC:.+]]: f32, %[[BIAS:.+]]: f32):
// CHECK:           %[[S:.+]] = arith.addf %{{.*}}, %[[BIAS]]
// CHECK-NEXT:      "qfuse.yield"(%[[ACC]], %[[S]])
// CHECK:         return %[[R]]#1, %[[R]]#0
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @two_readers(%x: !xq, %w: !w, %b: tensor<1400xbf16>) -> (!y, !y) {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-bias: fired}}
  %1 = "qfuse.add"(%0, %b) : (!y, tensor<1400xbf16>) -> !y
  return %1, %0 : !y, !y
}

// -----

// Both operands are the product: nothing else is read.
// CHECK-LABEL: func.func @reads_itself_twice
// CHECK:         ^bb0(%{{[^,]*}}: f32):
// CHECK:           arith.addf
// CHECK:         maps = []
// CHECK-NOT:     "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @reads_itself_twice(%x: !xq, %w: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-activation: fired}}
  %1 = "qfuse.add"(%0, %0) : (!y, !y) -> !y
  return %1 : !y
}

// -----

// A product that is broadcast to more rows is no epilogue.
// CHECK-LABEL: func.func @broadcast_up
// CHECK:         "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @broadcast_up(%x: tensor<1x512xbf16>, %w: !w, %r: tensor<4x1400xbf16>) -> tensor<4x1400xbf16> {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<1x512xbf16>, !w) -> tensor<1x1400xbf16>
  // expected-remark @+1 {{refused at qfuse.add: the result tensor<4x1400xbf16> is broadcast up from the product's tensor<1x1400xbf16>}}
  %1 = "qfuse.add"(%0, %r) : (tensor<1x1400xbf16>, tensor<4x1400xbf16>) -> tensor<4x1400xbf16>
  return %1 : tensor<4x1400xbf16>
}

// -----

// Four rows are not known to be the rows of the product.
// CHECK-LABEL: func.func @unknown_rows
// CHECK:         "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @unknown_rows(%x: !xq, %w: !w, %r: tensor<4x1400xbf16>) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{operand tensor<4x1400xbf16> does not broadcast to the product's tensor<?x1400xbf16> as [N], [M,1], [M,N] or a scalar}}
  %1 = "qfuse.add"(%0, %r) : (!y, tensor<4x1400xbf16>) -> !y
  return %1 : !y
}

// -----

// A result of several takes the bias, the others stay as they are, in their places.
// CHECK-LABEL: func.func @several_results
// CHECK:         %[[R:.+]]:2 = "qfuse.matmul"
// CHECK-NEXT:    ^bb0(%[[ACC:.+]]: f32, %{{.*}}: f32):
// CHECK:           %[[S:.+]] = arith.addf
// CHECK-NEXT:      "qfuse.yield"(%[[S]], %[[ACC]])
// CHECK:         return %[[R]]#0, %[[R]]#1
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @several_results(%x: !xq, %w: !w, %b: tensor<1400xbf16>) -> (!y, !y) {
  %0:2 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc, %acc) : (f32, f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!xq, !w) -> (!y, !y)
  // expected-remark @+1 {{epilogue-bias: fired}}
  %1 = "qfuse.add"(%0#0, %b) : (!y, tensor<1400xbf16>) -> !y
  return %1, %0#1 : !y, !y
}

// -----

// The sum of two products: one of them absorbs the add, the other is its residual.
// CHECK-LABEL: func.func @two_products
// CHECK:         %[[A:.+]] = "qfuse.matmul"(%{{.*}}, %{{[^,]*}}) ({
// CHECK:         "qfuse.matmul"(%{{.*}}, %{{.*}}, %[[A]]) ({
// CHECK-NOT:     "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @two_products(%x: !xq, %w: !w, %v: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %v) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %2 = "qfuse.add"(%0, %1) : (!y, !y) -> !y
  return %2 : !y
}

// -----

// The scheme that x is still to be quantized to stays with the product.
// CHECK-LABEL: func.func @input_scheme
// CHECK:           math.exp
// CHECK:         qfuse.input_scheme = #qfuse.scheme
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @input_scheme(%x: !x, %w: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #act, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{epilogue-activation: fired}}
  %1 = "qfuse.silu"(%0) : (!y) -> !y
  return %1 : !y
}

// -----

// A product is not moved into a loop, where it would be computed many times.
// CHECK-LABEL: func.func @reader_in_a_loop
// CHECK:         "qfuse.matmul"
// CHECK:         scf.for
// CHECK:           "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @reader_in_a_loop(%x: !xq, %w: !w, %n: index, %r: !y) -> !y {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %2 = scf.for %i = %c0 to %n step %c1 iter_args(%sum = %r) -> (!y) {
    // expected-remark @+1 {{refused at qfuse.add: qfuse.matmul stands in another block than qfuse.add, which may run more often}}
    %1 = "qfuse.add"(%0, %sum) : (!y, !y) -> !y
    scf.yield %1 : !y
  }
  return %2 : !y
}

// -----

// The second product depends on the first: it takes the sum, the first keeps its two readers.
// CHECK-LABEL: func.func @product_of_a_product
// CHECK:         %[[A:.+]] = "qfuse.matmul"
// CHECK:         "qfuse.matmul"(%{{.*}}, %{{.*}}, %[[A]]) ({
// CHECK:           arith.addf
// CHECK-NOT:     "qfuse.add"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
!v = !qfuse.qtensor<tensor<512x512xf8E4M3FN>, #weight>
func.func @product_of_a_product(%x: !xq, %a: !v, %b: !v) -> !x {
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !v) -> !x
  %1 = "qfuse.quantize"(%0) : (!x) -> !xq
  %2 = "qfuse.matmul"(%1, %b) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !v) -> !x
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %3 = "qfuse.add"(%0, %2) : (!x, !x) -> !x
  return %3 : !x
}

// -----

// With one row, [1, N] is a bias and [1, 1] a scalar; with one column, [1] is a bias.
// CHECK-LABEL: func.func @single_row_and_column
// CHECK:         maps = ["[N]", "[]"]
// CHECK:         maps = ["[N]", "[]", "[M,N]"]
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @single_row_and_column(%x: tensor<1x512xbf16>, %w: !w, %r: tensor<1x1400xbf16>, %f: tensor<1x1xbf16>, %z: !xq, %v: !qfuse.qtensor<tensor<1x512xf8E4M3FN>, #weight>, %b: tensor<1xbf16>, %s: tensor<f32>, %c: tensor<?x1xbf16>) -> (tensor<1x1400xbf16>, tensor<?x1xbf16>) {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<1x512xbf16>, !w) -> tensor<1x1400xbf16>
  // expected-remark @+1 {{epilogue-bias: fired}}
  %1 = "qfuse.add"(%0, %r) : (tensor<1x1400xbf16>, tensor<1x1400xbf16>) -> tensor<1x1400xbf16>
  // expected-remark @+1 {{epilogue-bias: fired}}
  %2 = "qfuse.mul"(%1, %f) : (tensor<1x1400xbf16>, tensor<1x1xbf16>) -> tensor<1x1400xbf16>
  %3 = "qfuse.matmul"(%z, %v) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !qfuse.qtensor<tensor<1x512xf8E4M3FN>, #weight>) -> tensor<?x1xbf16>
  // expected-remark @+1 {{epilogue-bias: fired}}
  %4 = "qfuse.add"(%3, %b) : (tensor<?x1xbf16>, tensor<1xbf16>) -> tensor<?x1xbf16>
  // expected-remark @+1 {{epilogue-bias: fired}}
  %5 = "qfuse.mul"(%4, %s) : (tensor<?x1xbf16>, tensor<f32>) -> tensor<?x1xbf16>
  // expected-remark @+1 {{epilogue-residual-binary: fired}}
  %6 = "qfuse.add"(%5, %c) : (tensor<?x1xbf16>, tensor<?x1xbf16>) -> tensor<?x1xbf16>
  return %2, %6 : tensor<1x1400xbf16>, tensor<?x1xbf16>
}

// -----

// A GLU of which one side is a product: the other side is its residual.
// CHECK-LABEL: func.func @glu_of_one_product
// CHECK:         ^bb0(%[[ACC:.+]]: f32, %[[UP:.+]]: f32):
// CHECK:           math.exp
// CHECK:           %[[A:.+]] = arith.divf
// CHECK-NEXT:      %[[R:.+]] = arith.truncf %[[A]] : f32 to bf16
// CHECK-NEXT:      %[[E:.+]] = arith.extf %[[R]] : bf16 to f32
// CHECK-NEXT:      arith.mulf %[[E]], %[[UP]]
// CHECK:         maps = ["[M,N]"]
// CHECK-NOT:     "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @glu_of_one_product(%x: !xq, %w: !w, %up: !y) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-glu: fired}}
  %1 = "qfuse.glu"(%0, %up) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %1 : !y
}

// -----

// Gate and up of different schemes cannot be merged; the GLU joins one of them.
// CHECK-LABEL: func.func @glu_of_two_schemes
// CHECK:         %[[G:.+]] = "qfuse.matmul"
// CHECK:         "qfuse.matmul"(%{{.*}}, %{{.*}}, %[[G]]) ({
// CHECK-NOT:     "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
!v = !qfuse.qtensor<tensor<1400x512xf8E5M2>, #weight>
func.func @glu_of_two_schemes(%x: !xq, %g: !w, %u: !v) -> !y {
  %0 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %u) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !v) -> !y
  // expected-remark @+1 {{epilogue-glu: fired}}
  %2 = "qfuse.glu"(%0, %1) {act = "gelu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %2 : !y
}

// -----

// The product is the up of a clamped GLU.
// CHECK-LABEL: func.func @clamped_glu_of_one_product
// CHECK:         "qfuse.matmul"(%arg0, %arg1, %arg2) ({
// CHECK-NEXT:    ^bb0(%[[UP:.+]]: f32, %[[GATE:.+]]: f32):
// CHECK:           arith.minimumf %[[GATE]], %{{.+}} : f32
// CHECK:           math.exp
// CHECK-NOT:     "qfuse.glu"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @clamped_glu_of_one_product(%x: !xq, %w: !w, %gate: !y) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{epilogue-glu: fired}}
  %1 = "qfuse.glu"(%gate, %0) {act = "swiglu_oai", limit = 7.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!y, !y) -> !y
  return %1 : !y
}
