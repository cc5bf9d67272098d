// RUN: qfuse-opt --qfuse-fuse-gate-up --remarks %s 2>&1 | filecheck %s

// The gate and up of experts are two results of one product.

// CHECK-DAG: gate-up: fired at qfuse.glu: saves 1 launch, 640 B a row
// CHECK-DAG: gate-up: refused at qfuse.group_matmul: gate or up has another reader; let the GLU alone read them, or read its result

!x = tensor<?x64xbf16>
!w = tensor<4x80x64xbf16>
!h = tensor<?x2x40xbf16>

// CHECK-LABEL: func.func @fires
// CHECK:         %[[H:.+]] = "qfuse.group_matmul"(%arg0, %arg1, %arg2, %arg3) ({
// CHECK:           math.exp
// CHECK:         resultSegmentSizes = array<i32: 1, 0, 0, 0>
// CHECK-NEXT:    return %[[H]]
func.func @fires(%x: !x, %w: !w, %indptr: tensor<5xi32>, %tokens: tensor<?x2xi32>) -> !h {
  %g, %u = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a, %b) : (f32, f32) -> ()
  }) {parts = array<i64: 40, 40>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!x, !w, tensor<5xi32>, tensor<?x2xi32>) -> (!h, !h)
  %h = "qfuse.glu"(%g, %u) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!h, !h) -> !h
  return %h : !h
}

// Somebody else reads up, which the fused product would not yield.
// CHECK-LABEL: func.func @up_is_read_twice
// CHECK:         %[[GU:.+]]:2 = "qfuse.group_matmul"
// CHECK:         %[[H:.+]] = "qfuse.glu"(%[[GU]]#0, %[[GU]]#1)
// CHECK-NEXT:    return %[[H]], %[[GU]]#1
func.func @up_is_read_twice(%x: !x, %w: !w, %indptr: tensor<5xi32>, %tokens: tensor<?x2xi32>) -> (!h, !h) {
  %g, %u = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a, %b) : (f32, f32) -> ()
  }) {parts = array<i64: 40, 40>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!x, !w, tensor<5xi32>, tensor<?x2xi32>) -> (!h, !h)
  %h = "qfuse.glu"(%g, %u) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!h, !h) -> !h
  return %h, %u : !h, !h
}

// Biases that the product has already stay before the GLU, whose limit comes after them.
// CHECK-LABEL: func.func @biased_and_clamped
// CHECK:         %[[H:.+]] = "qfuse.group_matmul"(%arg0, %arg1, %arg2, %arg3, %arg4, %arg4) ({
// CHECK:           %[[G:.+]] = arith.addf
// CHECK:           %[[U:.+]] = arith.addf
// CHECK:           %[[ROUNDED:.+]] = arith.extf
// CHECK:           arith.minimumf %[[ROUNDED]]
// CHECK:           math.exp
// CHECK:         maps = ["[E,N]", "[E,N]"]
// CHECK-NEXT:    return %[[H]]
func.func @biased_and_clamped(%x: !x, %w: !w, %indptr: tensor<5xi32>, %tokens: tensor<?x2xi32>, %bias: tensor<4x40xbf16>) -> !h {
  %g, %u = "qfuse.group_matmul"(%x, %w, %indptr, %tokens, %bias, %bias) ({
  ^bb0(%a: f32, %b: f32, %c: f32, %d: f32):
    %0 = arith.addf %a, %c : f32
    %1 = arith.addf %b, %d : f32
    "qfuse.yield"(%0, %1) : (f32, f32) -> ()
  }) {parts = array<i64: 40, 40>, maps = ["[E,N]", "[E,N]"], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!x, !w, tensor<5xi32>, tensor<?x2xi32>, tensor<4x40xbf16>, tensor<4x40xbf16>) -> (!h, !h)
  %h = "qfuse.glu"(%g, %u) {act = "swiglu_oai", limit = 7.0 : f64, operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>} : (!h, !h) -> !h
  return %h : !h
}
