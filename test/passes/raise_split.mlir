// RUN: qfuse-opt --qfuse-raise-torch --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-raise-torch --split-input-file --verify-diagnostics %s

// Products whose columns are cut apart, as merged layers write it.

// Halves of one product are two results of it, and stay so when x is still to be quantized.
// CHECK-LABEL: func.func @halves
// CHECK:         %[[R:.+]]:2 = "qfuse.matmul"
// CHECK-NEXT:    ^bb0(%[[A:.+]]: f32, %[[B:.+]]: f32):
// CHECK-NEXT:      "qfuse.yield"(%[[A]], %[[B]])
// CHECK:         parts = array<i64: 256, 256>, qfuse.input_scheme
// CHECK:         %[[S:.+]] = "qfuse.sigmoid"(%[[R]]#0)
// CHECK:         "qfuse.mul"(%[[S]], %[[R]]#1)
!x = !torch.vtensor<[?,512],bf16>
!h = !torch.vtensor<[?,256],bf16>
func.func @halves(%x: !x, %w: !torch.vtensor<[512,512],f8E4M3FN>, %s: !torch.vtensor<[4,4],f32>) -> !h {
  %none = torch.constant.none
  %packing = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  // expected-remark @+1 {{quantized-linear: fired}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %dynamic, %none, %none) : (!x, !torch.vtensor<[512,512],f8E4M3FN>, !torch.vtensor<[4,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,512],bf16>
  %int256 = torch.constant.int 256
  %im1 = torch.constant.int -1
  // expected-remark @+1 {{split-product: fired at torch.aten.split.Tensor}}
  %l = torch.aten.split.Tensor %y, %int256, %im1 : !torch.vtensor<[?,512],bf16>, !torch.int, !torch.int -> !torch.list<vtensor>
  %g, %u = torch.prim.ListUnpack %l : !torch.list<vtensor> -> !h, !h
  %a = torch.aten.sigmoid %g : !h -> !h
  %b = torch.aten.mul.Tensor %a, %u : !h, !h -> !h
  return %b : !h
}

// -----

// Slices do, too, of unequal widths; the bias is cut with them, and what nobody reads is not made.
// CHECK-LABEL: func.func @slices_with_bias
// CHECK:         %[[R:.+]] = "qfuse.matmul"
// CHECK-NEXT:    ^bb0(%{{.+}}: f32, %[[B:.+]]: f32, %{{.+}}: f32):
// CHECK-NEXT:      "qfuse.yield"(%[[B]])
// CHECK:         parts = array<i64: 128, 256, 128>
// CHECK:         %[[S:.+]] = torch.aten.slice.Tensor %{{.+}} : !torch.vtensor<[512],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[256],bf16>
// CHECK:         %[[T:.+]] = torch_c.to_builtin_tensor %[[S]]
// CHECK:         %[[A:.+]] = "qfuse.add"(%[[R]], %[[T]])
// CHECK:         "qfuse.tanh"(%[[A]])
!x = !torch.vtensor<[?,512],bf16>
!h = !torch.vtensor<[?,256],bf16>
func.func @slices_with_bias(%x: !x, %w: !torch.vtensor<[512,512],f8E4M3FN>, %s: !torch.vtensor<[4,4],f32>, %b: !torch.vtensor<[512],bf16>) -> !h {
  %none = torch.constant.none
  %packing = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  // expected-remark @+1 {{quantized-linear: fired}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %b, %wb, %xb, %packing, %dynamic, %none, %none) : (!x, !torch.vtensor<[512,512],f8E4M3FN>, !torch.vtensor<[4,4],f32>, !torch.vtensor<[512],bf16>, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,512],bf16>
  %int384 = torch.constant.int 384
  // expected-remark @+1 {{split-product: fired at torch.aten.slice.Tensor}}
  %g = torch.aten.slice.Tensor %y, %int1, %int128, %int384, %int1 : !torch.vtensor<[?,512],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !h
  %a = torch.aten.tanh %g : !h -> !h
  return %a : !h
}

// -----

// A part that begins within a block of scales would need the weight quantized again.
// CHECK-LABEL: func.func @off_a_block
// CHECK:         parts = array<i64: 400>
// CHECK:         torch.aten.slice.Tensor
!x = !torch.vtensor<[?,512],bf16>
!h = !torch.vtensor<[?,200],bf16>
func.func @off_a_block(%x: !x, %w: !torch.vtensor<[400,512],f8E4M3FN>, %s: !torch.vtensor<[4,4],f32>) -> !h {
  %none = torch.constant.none
  %packing = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  // expected-remark @+1 {{quantized-linear: fired}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %dynamic, %none, %none) : (!x, !torch.vtensor<[400,512],f8E4M3FN>, !torch.vtensor<[4,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,400],bf16>
  %int0 = torch.constant.int 0
  %int200 = torch.constant.int 200
  // expected-remark @+1 {{split-product: refused at torch.aten.slice.Tensor: the parts begin at rows [0, 200] of the weight, whose blocks have 128; give all parts but the last a multiple of 128 features}}
  %g = torch.aten.slice.Tensor %y, %int1, %int0, %int200, %int1 : !torch.vtensor<[?,400],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !h
  %a = torch.aten.tanh %g : !h -> !h
  return %a : !h
}

// -----

// Somebody reads the product as a whole.
// CHECK-LABEL: func.func @read_whole
// CHECK:         parts = array<i64: 512>
!x = !torch.vtensor<[?,512],bf16>
!h = !torch.vtensor<[?,256],bf16>
func.func @read_whole(%x: !x, %w: !torch.vtensor<[512,512],f8E4M3FN>, %s: !torch.vtensor<[4,4],f32>) -> (!h, !x) {
  %none = torch.constant.none
  %packing = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  // expected-remark @+1 {{quantized-linear: fired}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %dynamic, %none, %none) : (!x, !torch.vtensor<[512,512],f8E4M3FN>, !torch.vtensor<[4,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,512],bf16>
  %int0 = torch.constant.int 0
  %int256 = torch.constant.int 256
  // expected-remark @+1 {{split-product: refused at torch.aten.slice.Tensor: the product is read as a whole, too; read nothing but its parts}}
  %g = torch.aten.slice.Tensor %y, %int1, %int0, %int256, %int1 : !torch.vtensor<[?,512],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !h
  %a = torch.aten.tanh %g : !h -> !h
  return %a, %y : !h, !x
}

// -----

// Slices that overlap are no parts.
// CHECK-LABEL: func.func @overlap
// CHECK:         parts = array<i64: 512>
!x = !torch.vtensor<[?,512],bf16>
!h = !torch.vtensor<[?,256],bf16>
func.func @overlap(%x: !x, %w: !torch.vtensor<[512,512],f8E4M3FN>, %s: !torch.vtensor<[4,4],f32>) -> (!h, !h) {
  %none = torch.constant.none
  %packing = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  // expected-remark @+1 {{quantized-linear: fired}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %dynamic, %none, %none) : (!x, !torch.vtensor<[512,512],f8E4M3FN>, !torch.vtensor<[4,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,512],bf16>
  %int0 = torch.constant.int 0
  %int256 = torch.constant.int 256
  %int384 = torch.constant.int 384
  // expected-remark @+1 {{split-product: refused at torch.aten.slice.Tensor: the parts overlap; cut the columns once}}
  %g = torch.aten.slice.Tensor %y, %int1, %int0, %int256, %int1 : !torch.vtensor<[?,512],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !h
  %u = torch.aten.slice.Tensor %y, %int1, %int128, %int384, %int1 : !torch.vtensor<[?,512],bf16>, !torch.int, !torch.int, !torch.int, !torch.int -> !h
  %a = torch.aten.tanh %g : !h -> !h
  return %a, %u : !h, !h
}

// -----

// Without an element-wise reader nothing is gained, and a sibling could no longer be merged.
// CHECK-LABEL: func.func @nothing_joins
// CHECK:         parts = array<i64: 512>
!x = !torch.vtensor<[?,512],bf16>
!h = !torch.vtensor<[?,256],bf16>
func.func @nothing_joins(%x: !x, %w: !torch.vtensor<[512,512],f8E4M3FN>, %s: !torch.vtensor<[4,4],f32>) -> (!h, !h) {
  %none = torch.constant.none
  %packing = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  // expected-remark @+1 {{quantized-linear: fired}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %dynamic, %none, %none) : (!x, !torch.vtensor<[512,512],f8E4M3FN>, !torch.vtensor<[4,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,512],bf16>
  %int256 = torch.constant.int 256
  %im1 = torch.constant.int -1
  %l = torch.aten.split.Tensor %y, %int256, %im1 : !torch.vtensor<[?,512],bf16>, !torch.int, !torch.int -> !torch.list<vtensor>
  %g, %u = torch.prim.ListUnpack %l : !torch.list<vtensor> -> !h, !h
  return %g, %u : !h, !h
}

// -----

// Nor with one that only begins a norm: DeepSeek's compressed keys and values.
// CHECK-LABEL: func.func @norm_of_a_part
// CHECK:         parts = array<i64: 512>
!x = !torch.vtensor<[?,512],bf16>
!h = !torch.vtensor<[?,256],bf16>
!f = !torch.vtensor<[?,256],f32>
func.func @norm_of_a_part(%x: !x, %w: !torch.vtensor<[512,512],f8E4M3FN>, %s: !torch.vtensor<[4,4],f32>) -> (!f, !h) {
  %none = torch.constant.none
  %packing = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  // expected-remark @+1 {{quantized-linear: fired}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %dynamic, %none, %none) : (!x, !torch.vtensor<[512,512],f8E4M3FN>, !torch.vtensor<[4,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,512],bf16>
  %int256 = torch.constant.int 256
  %im1 = torch.constant.int -1
  %l = torch.aten.split.Tensor %y, %int256, %im1 : !torch.vtensor<[?,512],bf16>, !torch.int, !torch.int -> !torch.list<vtensor>
  %g, %u = torch.prim.ListUnpack %l : !torch.list<vtensor> -> !h, !h
  %int6 = torch.constant.int 6
  %false = torch.constant.bool false
  %c = torch.aten.to.dtype %g, %int6, %false, %false, %none : !h, !torch.int, !torch.bool, !torch.bool, !torch.none -> !f
  return %c, %u : !f, !h
}

// -----

// More parts than a product has results.
// CHECK-LABEL: func.func @six_parts
// CHECK:         "qfuse.matmul"
// CHECK:         torch.aten.split.Tensor
!x = !torch.vtensor<[?,512],bf16>
!h = !torch.vtensor<[?,128],bf16>
func.func @six_parts(%x: !x, %w: !torch.vtensor<[768,512],f8E4M3FN>, %s: !torch.vtensor<[6,4],f32>) -> (!h, !h, !h, !h, !h, !h) {
  %none = torch.constant.none
  %packing = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %int1 = torch.constant.int 1
  %int128 = torch.constant.int 128
  %wb = torch.prim.ListConstruct %int128, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  %xb = torch.prim.ListConstruct %int1, %int128 : (!torch.int, !torch.int) -> !torch.list<int>
  // expected-remark @+1 {{quantized-linear: fired}}
  %y = torch.operator "torch.qfuse.quantized_linear"(%x, %w, %s, %none, %wb, %xb, %packing, %dynamic, %none, %none) : (!x, !torch.vtensor<[768,512],f8E4M3FN>, !torch.vtensor<[6,4],f32>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,768],bf16>
  %width = torch.constant.int 128
  %im1 = torch.constant.int -1
  // expected-remark @+1 {{split-product: refused at torch.aten.split.Tensor: there are 6 parts, and a product has at most 4}}
  %l = torch.aten.split.Tensor %y, %width, %im1 : !torch.vtensor<[?,768],bf16>, !torch.int, !torch.int -> !torch.list<vtensor>
  %g, %u, %2, %3, %4, %5 = torch.prim.ListUnpack %l : !torch.list<vtensor> -> !h, !h, !h, !h, !h, !h
  %a = torch.aten.sigmoid %g : !h -> !h
  return %a, %u, %2, %3, %4, %5 : !h, !h, !h, !h, !h, !h
}
