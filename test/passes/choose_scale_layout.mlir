// RUN: qfuse-opt --qfuse-choose-scale-layout --remarks %s 2>&1 | filecheck %s

#row = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#token = #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
#per_row = #qfuse.scheme<array<i64: 1, 512>, f32, "none", "none", "row_major">
!x = tensor<?x512xbf16>
!q = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #row>
!t = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #token>
!w = !qfuse.qtensor<tensor<512x512xf8E4M3FN>, #weight>
!we = !qfuse.qtensor<tensor<4x512x512xf8E4M3FN>, #weight>
!qh = !qfuse.qtensor<tensor<?x2x512xf8E4M3FN>, #row>
!wt = !qfuse.qtensor<tensor<512x512xf8E4M3FN>, #per_row>

// CHECK-DAG: scale-layout: fired at qfuse.quantize
// CHECK-DAG: scale-layout: refused at qfuse.unpack: it reads the scales of qfuse.quantize row by row; let only products and dequantizes read the quantized value

// Between kernels of ours the scales may lie as the reader wants them; the plain result is as it was.
// CHECK-LABEL: func.func @fires
// CHECK:         "qfuse.quantize"(%{{.*}}) : (tensor<?x512xbf16>) -> !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "col_major">>
// CHECK:         "qfuse.matmul"
// CHECK:         "col_major"{{.*}}"row_major">>) -> tensor<?x512xbf16>
func.func @fires(%x: !x, %w: !w) -> (!x, !x) {
  %q = "qfuse.quantize"(%x) : (!x) -> !q
  %y = "qfuse.matmul"(%q, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!q, !w) -> !x
  %d = "qfuse.dequantize"(%q) : (!q) -> !x
  return %y, %d : !x, !x
}

// The tokens of a layer of experts, and the rows between its two products.
// CHECK-LABEL: func.func @experts
// CHECK:         "qfuse.quantize"{{.*}} -> !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<{{.*}}, "col_major">>
// CHECK:         "qfuse.group_matmul"
// CHECK:         -> !qfuse.qtensor<tensor<?x2x512xf8E4M3FN>, #qfuse.scheme<{{.*}}, "col_major">>
// CHECK:         "qfuse.group_matmul"
// CHECK:         -> tensor<?x2x512xbf16>
func.func @experts(%x: !x, %w: !we, %indptr: tensor<5xi32>, %tokens: tensor<?x2xi32>) -> tensor<?x2x512xbf16> {
  %q = "qfuse.quantize"(%x) : (!x) -> !q
  %h = "qfuse.group_matmul"(%q, %w, %indptr, %tokens) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!q, !we, tensor<5xi32>, tensor<?x2xi32>) -> !qh
  %y = "qfuse.group_matmul"(%h, %w, %indptr) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!qh, !we, tensor<5xi32>) -> tensor<?x2x512xbf16>
  return %y : tensor<?x2x512xbf16>
}

// Scales that somebody sees stay as the type says they are.
// CHECK-LABEL: func.func @unpacked
// CHECK-NOT:     col_major
// CHECK:         return
func.func @unpacked(%x: !x) -> tensor<?x4xf32> {
  %q = "qfuse.quantize"(%x) : (!x) -> !q
  %data, %scale = "qfuse.unpack"(%q) : (!q) -> (tensor<?x512xf8E4M3FN>, tensor<?x4xf32>)
  return %scale : tensor<?x4xf32>
}

// Nothing to choose: an argument is laid out by the caller, and one scale per row has one layout.
// CHECK-LABEL: func.func @nothing
// CHECK-NOT:     col_major
// CHECK:         return
func.func @nothing(%a: !q, %x: !x, %w: !w, %wt: !wt) -> (!x, !x) {
  %y = "qfuse.matmul"(%a, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!q, !w) -> !x
  %t = "qfuse.quantize"(%x) : (!x) -> !t
  %z = "qfuse.matmul"(%t, %wt) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 512>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!t, !wt) -> !x
  return %y, %z : !x, !x
}

// A packing says how its scales lie.
// CHECK-LABEL: func.func @packed
// CHECK-NOT:     col_major
// CHECK:         return
func.func @packed(%x: !x) -> !x {
  %q = "qfuse.quantize"(%x) : (!x) -> !qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>
  %d = "qfuse.dequantize"(%q) : (!qfuse.qtensor<tensor<?x512xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">>) -> !x
  return %d : !x
}
