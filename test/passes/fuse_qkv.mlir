// RUN: qfuse-opt --qfuse-fuse-qkv --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-fuse-qkv --split-input-file --verify-diagnostics %s

// Three widths, one launch, three results in the old order.
// CHECK-LABEL: func.func @unequal_widths
// CHECK:         %[[W:.+]] = "qfuse.concat"(%{{.*}}, %{{.*}}, %{{.*}}) {{.*}} -> !qfuse.qtensor<tensor<898x512x
// CHECK:         %[[Y:.+]]:3 = "qfuse.matmul"(%{{.*}}, %[[W]])
// CHECK-NEXT:    ^bb0(%[[A:.+]]: f32, %[[B:.+]]: f32, %[[C:.+]]: f32):
// CHECK-NEXT:      "qfuse.yield"(%[[A]], %[[B]], %[[C]])
// CHECK:         parts = array<i64: 512, 130, 130>
// CHECK-NEXT:    return %[[Y]]#0, %[[Y]]#1, %[[Y]]#2
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
!wq = !qfuse.qtensor<tensor<512x512xf8E4M3FN>, #weight>
!wk = !qfuse.qtensor<tensor<130x512xf8E4M3FN>, #weight>
!q = tensor<?x512xbf16>
!k = tensor<?x130xbf16>
func.func @unequal_widths(%x: !xq, %a: !wq, %b: !wk, %c: !wk) -> (!q, !k, !k) {
  // expected-remark @+1 {{siblings: fired at qfuse.matmul: saves 2 launches, 1056 B a row}}
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> !q
  %1 = "qfuse.matmul"(%x, %b) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wk) -> !k
  %2 = "qfuse.matmul"(%x, %c) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wk) -> !k
  return %0, %1, %2 : !q, !k, !k
}

// -----

// A single product has no sibling, and nobody expects a remark.
// CHECK-LABEL: func.func @alone
// CHECK-NOT:     "qfuse.concat"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
!wq = !qfuse.qtensor<tensor<512x512xf8E4M3FN>, #weight>
!wk = !qfuse.qtensor<tensor<130x512xf8E4M3FN>, #weight>
!q = tensor<?x512xbf16>
!k = tensor<?x130xbf16>
func.func @alone(%x: !xq, %a: !wq) -> !q {
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> !q
  return %0 : !q
}

// -----

// v has an epilogue, so it stays; q and k are merged all the same.
// CHECK-LABEL: func.func @one_differs
// CHECK:         parts = array<i64: 512, 130>
// CHECK:         arith.negf
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
!wq = !qfuse.qtensor<tensor<512x512xf8E4M3FN>, #weight>
!wk = !qfuse.qtensor<tensor<130x512xf8E4M3FN>, #weight>
!q = tensor<?x512xbf16>
!k = tensor<?x130xbf16>
func.func @one_differs(%x: !xq, %a: !wq, %b: !wk, %c: !wk) -> (!q, !k, !k) {
  // expected-remark @+1 {{siblings: fired at qfuse.matmul}}
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> !q
  %1 = "qfuse.matmul"(%x, %b) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wk) -> !k
  // expected-remark @+1 {{siblings: refused at qfuse.matmul: an epilogue is already fused into one of the products}}
  %2 = "qfuse.matmul"(%x, %c) ({
  ^bb0(%acc: f32):
    %n = arith.negf %acc : f32
    "qfuse.yield"(%n) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wk) -> !k
  return %0, %1, %2 : !q, !k, !k
}

// -----

// Blocks of another shape cannot stand in one weight.
// CHECK-LABEL: func.func @other_scheme
// CHECK-NOT:     "qfuse.concat"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
!wq = !qfuse.qtensor<tensor<512x512xf8E4M3FN>, #weight>
!wk = !qfuse.qtensor<tensor<130x512xf8E4M3FN>, #weight>
!q = tensor<?x512xbf16>
!k = tensor<?x130xbf16>
!w2 = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #qfuse.scheme<array<i64: 64, 128>, f32, "none", "none", "row_major">>
func.func @other_scheme(%x: !xq, %a: !wq, %b: !w2) -> (!q, !y) {
  // expected-remark @+1 {{refused at qfuse.matmul: weight schemes differ}}
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> !q
  // expected-remark @+1 {{refused at qfuse.matmul: weight schemes differ}}
  %1 = "qfuse.matmul"(%x, %b) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w2) -> !y
  return %0, %1 : !q, !y
}

// -----

// Another input, another product.
// CHECK-LABEL: func.func @other_input
// CHECK-NOT:     "qfuse.concat"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
!wq = !qfuse.qtensor<tensor<512x512xf8E4M3FN>, #weight>
!wk = !qfuse.qtensor<tensor<130x512xf8E4M3FN>, #weight>
!q = tensor<?x512xbf16>
!k = tensor<?x130xbf16>
func.func @other_input(%x: !xq, %z: !xq, %a: !wq, %b: !wk) -> (!q, !k) {
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wq) -> !q
  %1 = "qfuse.matmul"(%z, %b) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wk) -> !k
  return %0, %1 : !q, !k
}

// -----

// A product has at most four results.
// CHECK-LABEL: func.func @five
// CHECK:         parts = array<i64: 130, 130, 130, 130>
// CHECK:         parts = array<i64: 130>
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
!wq = !qfuse.qtensor<tensor<512x512xf8E4M3FN>, #weight>
!wk = !qfuse.qtensor<tensor<130x512xf8E4M3FN>, #weight>
!q = tensor<?x512xbf16>
!k = tensor<?x130xbf16>
func.func @five(%x: !xq, %a: !wk) -> (!k, !k, !k, !k, !k) {
  // expected-remark @+1 {{siblings: fired}}
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wk) -> !k
  %1 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wk) -> !k
  %2 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wk) -> !k
  %3 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wk) -> !k
  // expected-remark @+1 {{refused at qfuse.matmul: 4 products are merged already}}
  %4 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !wk) -> !k
  return %0, %1, %2, %3, %4 : !k, !k, !k, !k, !k
}

// -----

// Seven are four and three, and no one is refused.
// CHECK-LABEL: func.func @seven
// CHECK:         parts = array<i64: 1400, 1400, 1400, 1400>
// CHECK:         parts = array<i64: 1400, 1400, 1400>
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @seven(%x: !xq, %a: !w, %b: !w, %c: !w, %d: !w, %e: !w, %f: !w, %g: !w) -> (!y, !y, !y, !y, !y, !y, !y) {
  // expected-remark @+1 {{siblings: fired}}
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1 = "qfuse.matmul"(%x, %b) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %2 = "qfuse.matmul"(%x, %c) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %3 = "qfuse.matmul"(%x, %d) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  // expected-remark @+1 {{siblings: fired}}
  %4 = "qfuse.matmul"(%x, %e) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %5 = "qfuse.matmul"(%x, %f) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %6 = "qfuse.matmul"(%x, %g) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  return %0, %1, %2, %3, %4, %5, %6 : !y, !y, !y, !y, !y, !y, !y
}

// -----

// The first product stands alone, the others are siblings all the same.
// CHECK-LABEL: func.func @first_differs
// CHECK:         parts = array<i64: 1400>
// CHECK:         parts = array<i64: 1400, 1400>
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
!v = !qfuse.qtensor<tensor<1400x512xf8E5M2>, #weight>
func.func @first_differs(%x: !xq, %a: !v, %b: !w, %c: !w) -> (!y, !y, !y) {
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !v) -> !y
  // expected-remark @+1 {{siblings: fired}}
  %1 = "qfuse.matmul"(%x, %b) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %2 = "qfuse.matmul"(%x, %c) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  return %0, %1, %2 : !y, !y, !y
}

// -----

// In a branch, the products of that branch are siblings; its weights may come from outside.
// CHECK-LABEL: func.func @branches
// CHECK:         parts = array<i64: 1400>
// CHECK:         scf.if
// CHECK:           parts = array<i64: 1400, 1400>
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @branches(%x: !xq, %p: i1, %a: !w, %d: tensor<1400x512xf8E4M3FN>, %s: tensor<11x4xf32>) -> (!y, !y, !y) {
  %b = "qfuse.pack"(%d, %s) : (tensor<1400x512xf8E4M3FN>, tensor<11x4xf32>) -> !w
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %1:2 = scf.if %p -> (!y, !y) {
    // expected-remark @+1 {{siblings: fired}}
  %2 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %3 = "qfuse.matmul"(%x, %b) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
    scf.yield %2, %3 : !y, !y
  } else {
    scf.yield %0, %0 : !y, !y
  }
  return %0, %1#0, %1#1 : !y, !y, !y
}

// -----

// A weight that is made later cannot be joined where the first product stands.
// CHECK-LABEL: func.func @late_weight
// CHECK-NOT:     "qfuse.concat"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @late_weight(%x: !xq, %a: !w, %d: tensor<1400x512xf8E4M3FN>, %s: tensor<11x4xf32>) -> (!y, !y) {
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  %b = "qfuse.pack"(%d, %s) : (tensor<1400x512xf8E4M3FN>, tensor<11x4xf32>) -> !w
  // expected-remark @+1 {{siblings: refused at qfuse.matmul: the weight is made after the first product; make weights at the top}}
  %1 = "qfuse.matmul"(%x, %b) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!xq, !w) -> !y
  return %0, %1 : !y, !y
}

// -----

// A product of a value with itself reads it twice, and is no sibling of its own.
// CHECK-LABEL: func.func @square
// CHECK-NOT:     "qfuse.concat"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @square(%x: tensor<16x512xbf16>) -> tensor<16x16xbf16> {
  %0 = "qfuse.matmul"(%x, %x) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 16>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<16x512xbf16>, tensor<16x512xbf16>) -> tensor<16x16xbf16>
  return %0 : tensor<16x16xbf16>
}

// -----

// Merging would lose the quantization of the input.
// CHECK-LABEL: func.func @input_scheme
// CHECK-NOT:     "qfuse.concat"
#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #act>
!y = tensor<?x1400xbf16>
!yq = !qfuse.qtensor<tensor<?x1400xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<1400x512xf8E4M3FN>, #weight>
func.func @input_scheme(%x: !x, %a: !w, %b: !w) -> (!y, !y) {
  // expected-remark @+1 {{the quantization of an input is still part of the product; run qfuse-expand-quantize first}}
  %0 = "qfuse.matmul"(%x, %a) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #act, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  // expected-remark @+1 {{the quantization of an input is still part of the product; run qfuse-expand-quantize first}}
  %1 = "qfuse.matmul"(%x, %b) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {qfuse.input_scheme = #act, parts = array<i64: 1400>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  return %0, %1 : !y, !y
}
