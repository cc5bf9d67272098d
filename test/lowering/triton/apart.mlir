// RUN: %python -m qfuse.tools.qfuse_translate --to=ttir %s | filecheck %s

// Gate and up of what a library computed, 96 columns apart; one launch, and the result is quantized.
// CHECK:         // kernel epilogue_0
// CHECK:         ^bb0(%[[Y:.+]]: !tt.ptr<bf16>, %[[Q:.+]]: !tt.ptr<f8E4M3FN>, %[[S:.+]]: !tt.ptr<f32>, %{{.+}}: i32):
// CHECK:         arith.constant dense<96>
// CHECK:         "tt.load"
// CHECK:         "tt.load"
// CHECK:         arith.mulf
// CHECK:         "tt.reduce"
// CHECK:         "tt.store"
// CHECK:         "tt.store"
// CHECK-NOT:     "tt.dot"
#q = #qfuse.scheme<array<i64: 1, 32>, f32, "none", "none", "row_major">
func.func @main(%y: tensor<?x192xbf16>) -> !qfuse.qtensor<tensor<?x96xf8E4M3FN>, #q> {
  %0 = "qfuse.epilogue"(%y) ({
  ^bb0(%gate: f32, %up: f32):
    %2 = arith.mulf %gate, %up : f32
    "qfuse.yield"(%2) : (f32) -> ()
  }) {parts = array<i64: 96, 96>, starts = array<i64: 0, 96>, maps = [], operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<?x192xbf16>) -> !qfuse.qtensor<tensor<?x96xf8E4M3FN>, #q>
  return %0 : !qfuse.qtensor<tensor<?x96xf8E4M3FN>, #q>
}
