// RUN: qfuse-opt --qfuse-fuse-combine --remarks %s 2>&1 | filecheck %s

// The rows of a token's experts are added up by the product that makes them.

// CHECK-DAG: product-combine: fired at qfuse.combine: saves 1 launch, 1024 B a row
// CHECK-DAG: product-combine: refused at qfuse.group_matmul: the product has 2 readers, and fusing one would compute it again for the others; give the value one reader
// CHECK-DAG: product-combine: refused at qfuse.group_matmul: the product has 2 results; fuse what follows before products are merged
// CHECK-DAG: product-combine: refused at qfuse.combine: the slots are not of the route that the rows are sorted by: indptr is made by qfuse.route, slots by qfuse.route; take indptr and slots from one qfuse.route
// CHECK-DAG: product-combine: refused at qfuse.combine: the slots are not of the route that the rows are sorted by: indptr is made by qfuse.route, slots by an argument
// CHECK-DAG: product-combine: refused at qfuse.combine: qfuse.group_matmul stands in another block than qfuse.combine, which may run more often; compute both in one block
// CHECK-DAG: product-combine: refused at qfuse.combine: the rows are made by qfuse.mul, not by a product of experts; let qfuse.group_matmul make them
// CHECK-DAG: product-combine: refused at qfuse.combine: the rows are made by an argument, not by a product of experts

!x = !qfuse.qtensor<tensor<?x4x192xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
!w = !qfuse.qtensor<tensor<16x64x192xf8E4M3FN>, #qfuse.scheme<array<i64: 64, 128>, f32, "none", "none", "row_major">>
!wide = !qfuse.qtensor<tensor<16x128x192xf8E4M3FN>, #qfuse.scheme<array<i64: 64, 128>, f32, "none", "none", "row_major">>
!ids = tensor<?x4xi64>
!p = tensor<17xi32>
!s = tensor<?x4xi32>
!f = tensor<?x4xf32>
!y = tensor<?x4x64xbf16>
!o = tensor<?x64xbf16>

// Rows are rounded as they were; the residual goes along.
// CHECK-LABEL: func.func @rows
// CHECK:         %[[R:.+]]:3 = "qfuse.route"
// CHECK-NEXT:    %[[OUT:.+]] = "qfuse.group_matmul_combine"(%arg0, %arg1, %[[R]]#2, %[[R]]#0, %arg3, %arg4) ({
// CHECK-NEXT:    ^bb0(%[[ACC:.+]]: f32):
// CHECK-NEXT:      %[[CUT:.+]] = arith.truncf %[[ACC]] : f32 to bf16
// CHECK-NEXT:      %[[ROW:.+]] = arith.extf %[[CUT]] : bf16 to f32
// CHECK-NEXT:      "qfuse.yield"(%[[ROW]])
// CHECK-NEXT:    }) {maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, parts = array<i64: 64>}
// CHECK-NEXT:    return %[[OUT]]
func.func @rows(%x: !x, %w: !w, %ids: !ids, %f: !f, %residual: !o) -> !o {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64} : (!ids) -> (!s, !s, !p)
  %y = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 64>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, !p) -> !y
  %out = "qfuse.combine"(%y, %slots, %f, %residual) {operandSegmentSizes = array<i32: 1, 1, 1, 1>} : (!y, !s, !f, !o) -> !o
  return %out : !o
}

// A bias of each row and an expert that all tokens share; f32 rows need no rounding; x has tokens.
// CHECK-LABEL: func.func @everything
// CHECK:         "qfuse.group_matmul_combine"(%arg0, %arg1, %[[R:.+]]#2, %[[R]]#0, %arg3, %[[R]]#1, %arg4) ({
// CHECK-NEXT:    ^bb0(%[[ACC:.+]]: f32, %[[BIAS:.+]]: f32):
// CHECK-NEXT:      %[[SUM:.+]] = arith.addf %[[ACC]], %[[BIAS]] : f32
// CHECK-NEXT:      "qfuse.yield"(%[[SUM]])
// CHECK-NEXT:    }) {maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0>, parts = array<i64: 64>}
func.func @everything(%x: tensor<?x192xbf16>, %w: !w, %ids: !ids, %f: tensor<?x3xf32>, %bias: tensor<64xf32>) -> !o {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64} : (!ids) -> (!s, !s, !p)
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens, %bias) ({
  ^bb0(%acc: f32, %b: f32):
    %sum = arith.addf %acc, %b : f32
    "qfuse.yield"(%sum) : (f32) -> ()
  }) {parts = array<i64: 64>, maps = ["[N]"], operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x192xbf16>, !w, !p, !s, tensor<64xf32>) -> tensor<?x4x64xf32>
  %out = "qfuse.combine"(%y, %slots, %f) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (tensor<?x4x64xf32>, !s, tensor<?x3xf32>) -> !o
  return %out : !o
}

// Somebody else wants the rows.
// CHECK-LABEL: func.func @two_readers
// CHECK:         %[[Y:.+]] = "qfuse.group_matmul"
// CHECK:         "qfuse.combine"(%[[Y]]
func.func @two_readers(%x: !x, %w: !w, %ids: !ids, %f: !f) -> (!y, !o) {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64} : (!ids) -> (!s, !s, !p)
  %y = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 64>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, !p) -> !y
  %out = "qfuse.combine"(%y, %slots, %f) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !s, !f) -> !o
  return %y, %out : !y, !o
}

// Of two results neither is added up, whichever it is.
// CHECK-LABEL: func.func @two_results
// CHECK:         %[[Y:.+]]:2 = "qfuse.group_matmul"
// CHECK:         "qfuse.combine"(%[[Y]]#0
// CHECK:         "qfuse.combine"(%[[Y]]#1
func.func @two_results(%x: !x, %w: !wide, %ids: !ids, %f: !f) -> (!o, !o) {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64} : (!ids) -> (!s, !s, !p)
  %y, %z = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%a: f32, %b: f32):
    "qfuse.yield"(%a, %b) : (f32, f32) -> ()
  }) {parts = array<i64: 64, 64>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 1, 0, 0>} : (!x, !wide, !p) -> (!y, !y)
  %first = "qfuse.combine"(%y, %slots, %f) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !s, !f) -> !o
  %second = "qfuse.combine"(%z, %slots, %f) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !s, !f) -> !o
  return %first, %second : !o, !o
}

// The rows lie in the order of other choices.
// CHECK-LABEL: func.func @another_route
// CHECK:         "qfuse.group_matmul"
// CHECK:         "qfuse.combine"
func.func @another_route(%x: !x, %w: !w, %ids: !ids, %others: !ids, %f: !f) -> !o {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64} : (!ids) -> (!s, !s, !p)
  %slots_1, %tokens_1, %indptr_1 = "qfuse.route"(%others) {num_experts = 16 : i64} : (!ids) -> (!s, !s, !p)
  %y = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 64>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, !p) -> !y
  %out = "qfuse.combine"(%y, %slots_1, %f) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !s, !f) -> !o
  return %out : !o
}

// Nothing says what order the slots are of.
// CHECK-LABEL: func.func @given_slots
// CHECK:         "qfuse.group_matmul"
// CHECK:         "qfuse.combine"
func.func @given_slots(%x: !x, %w: !w, %ids: !ids, %given: !s, %f: !f) -> !o {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64} : (!ids) -> (!s, !s, !p)
  %y = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 64>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, !p) -> !y
  %out = "qfuse.combine"(%y, %given, %f) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !s, !f) -> !o
  return %out : !o
}

// Made once, added up in a loop with other weights each time.
// CHECK-LABEL: func.func @loop
// CHECK:         "qfuse.group_matmul"
// CHECK:         scf.for
// CHECK:           "qfuse.combine"
func.func @loop(%x: !x, %w: !w, %ids: !ids, %f: !f, %n: index, %init: !o) -> !o {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64} : (!ids) -> (!s, !s, !p)
  %y = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 64>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, !p) -> !y
  %out = scf.for %i = %c0 to %n step %c1 iter_args(%old = %init) -> (!o) {
    %sum = "qfuse.combine"(%y, %slots, %f, %old) {operandSegmentSizes = array<i32: 1, 1, 1, 1>} : (!y, !s, !f, !o) -> !o
    scf.yield %sum : !o
  }
  return %out : !o
}

// Something comes in between, which experts do not do themselves.
// CHECK-LABEL: func.func @scaled_rows
// CHECK:         "qfuse.group_matmul"
// CHECK:         "qfuse.mul"
// CHECK:         "qfuse.combine"
func.func @scaled_rows(%x: !x, %w: !w, %ids: !ids, %f: !f, %scale: tensor<64xbf16>) -> !o {
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 16 : i64} : (!ids) -> (!s, !s, !p)
  %y = "qfuse.group_matmul"(%x, %w, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 64>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, !p) -> !y
  %z = "qfuse.mul"(%y, %scale) : (!y, tensor<64xbf16>) -> !y
  %out = "qfuse.combine"(%z, %slots, %f) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !s, !f) -> !o
  return %out : !o
}

// Rows from outside.
// CHECK-LABEL: func.func @given_rows
// CHECK:         "qfuse.combine"
func.func @given_rows(%y: !y, %slots: !s, %f: !f) -> !o {
  %out = "qfuse.combine"(%y, %slots, %f) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : (!y, !s, !f) -> !o
  return %out : !o
}
