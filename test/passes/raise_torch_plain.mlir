// RUN: qfuse-opt %s --split-input-file --qfuse-raise-torch --verify-diagnostics --remarks
// RUN: qfuse-opt %s --split-input-file --qfuse-raise-torch | filecheck %s
// RUN: qfuse-opt %s --split-input-file --qfuse-raise-torch --qfuse-expand-quantize --qfuse-fuse-qkv --qfuse-fuse-epilogue | filecheck %s --check-prefix FUSED

// The bias is added to the sum, as torch does, and the result rounded once.
// CHECK-LABEL: func.func @bias
// CHECK:         %[[Y:.+]] = "qfuse.matmul"(%{{.*}}, %{{.*}}) ({
// CHECK-NEXT:    ^bb0(%[[SUM:.+]]: f32):
// CHECK-NEXT:      "qfuse.yield"(%[[SUM]])
// CHECK:         (tensor<1x?x512xbf16>, tensor<4096x512xbf16>) -> tensor<1x?x4096xf32>
// CHECK:         "qfuse.add"(%[[Y]], %{{.*}}) : (tensor<1x?x4096xf32>, tensor<4096xbf16>) -> tensor<1x?x4096xbf16>
// CHECK-NOT:     torch.aten.linear
func.func @bias(%x: !torch.vtensor<[1,?,512],bf16>, %w: !torch.vtensor<[4096,512],bf16>, %b: !torch.vtensor<[4096],bf16>) -> !torch.vtensor<[1,?,4096],bf16> {
  // expected-remark @+1 {{plain-product: fired at torch.aten.linear}}
  %y = torch.aten.linear %x, %w, %b : !torch.vtensor<[1,?,512],bf16>, !torch.vtensor<[4096,512],bf16>, !torch.vtensor<[4096],bf16> -> !torch.vtensor<[1,?,4096],bf16>
  return %y : !torch.vtensor<[1,?,4096],bf16>
}

// -----

// Siblings with biases: the bias, apart, does not keep them from being one product, and joins it.
// CHECK-LABEL: func.func @siblings
// CHECK-COUNT-2: "qfuse.add"
// FUSED-LABEL: func.func @siblings
// FUSED:         %[[W:.+]] = "qfuse.concat"
// FUSED:         %[[Y:.+]]:2 = "qfuse.matmul"(%{{.*}}, %[[W]], %{{.*}}, %{{.*}})
// FUSED:         parts = array<i64: 64, 32>
// FUSED-SAME:    -> (tensor<?x64xbf16>, tensor<?x32xbf16>)
// FUSED-NOT:     qfuse.add
func.func @siblings(%x: !torch.vtensor<[?,96],bf16>, %q: !torch.vtensor<[64,96],bf16>, %k: !torch.vtensor<[32,96],bf16>, %bq: !torch.vtensor<[64],bf16>, %bk: !torch.vtensor<[32],bf16>) -> (!torch.vtensor<[?,64],bf16>, !torch.vtensor<[?,32],bf16>) {
  // expected-remark @+1 {{plain-product: fired at torch.aten.linear}}
  %a = torch.aten.linear %x, %q, %bq : !torch.vtensor<[?,96],bf16>, !torch.vtensor<[64,96],bf16>, !torch.vtensor<[64],bf16> -> !torch.vtensor<[?,64],bf16>
  // expected-remark @+1 {{plain-product: fired at torch.aten.linear}}
  %b = torch.aten.linear %x, %k, %bk : !torch.vtensor<[?,96],bf16>, !torch.vtensor<[32,96],bf16>, !torch.vtensor<[32],bf16> -> !torch.vtensor<[?,32],bf16>
  return %a, %b : !torch.vtensor<[?,64],bf16>, !torch.vtensor<[?,32],bf16>
}

// -----

// The head of a language model, whose weight is the embedding, too, for which its rows are needed.
// CHECK-LABEL: func.func @tied
// CHECK:         torch.aten.embedding
// CHECK:         torch.aten.linear
func.func @tied(%x: !torch.vtensor<[?,64],f16>, %table: !torch.vtensor<[1000,64],f16>, %ids: !torch.vtensor<[?],si64>) -> (!torch.vtensor<[?,1000],f16>, !torch.vtensor<[?,64],f16>) {
  %none = torch.constant.none
  %minus = torch.constant.int -1
  %false = torch.constant.bool false
  %e = torch.aten.embedding %table, %ids, %minus, %false, %false : !torch.vtensor<[1000,64],f16>, !torch.vtensor<[?],si64>, !torch.int, !torch.bool, !torch.bool -> !torch.vtensor<[?,64],f16>
  // expected-remark @+1 {{plain-product: refused at torch.aten.linear: torch.aten.embedding reads the rows of the weight, too, which packed for a kernel would be kept twice, so the product runs on torch; give the product a weight of its own}}
  %y = torch.aten.linear %x, %table, %none : !torch.vtensor<[?,64],f16>, !torch.vtensor<[1000,64],f16>, !torch.none -> !torch.vtensor<[?,1000],f16>
  return %y, %e : !torch.vtensor<[?,1000],f16>, !torch.vtensor<[?,64],f16>
}

// -----

// Products may share one.
// CHECK-LABEL: func.func @shared
// CHECK-COUNT-2: "qfuse.matmul"
func.func @shared(%x: !torch.vtensor<[?,64],f32>, %y: !torch.vtensor<[?,64],f32>, %w: !torch.vtensor<[100,64],f32>) -> (!torch.vtensor<[?,100],f32>, !torch.vtensor<[?,100],f32>) {
  %none = torch.constant.none
  // expected-remark @+1 {{plain-product: fired at torch.aten.linear}}
  %a = torch.aten.linear %x, %w, %none : !torch.vtensor<[?,64],f32>, !torch.vtensor<[100,64],f32>, !torch.none -> !torch.vtensor<[?,100],f32>
  // expected-remark @+1 {{plain-product: fired at torch.aten.linear}}
  %b = torch.aten.linear %y, %w, %none : !torch.vtensor<[?,64],f32>, !torch.vtensor<[100,64],f32>, !torch.none -> !torch.vtensor<[?,100],f32>
  return %a, %b : !torch.vtensor<[?,100],f32>, !torch.vtensor<[?,100],f32>
}

// -----

// A weight that is made in each call may be anything, such as keys.
// CHECK-LABEL: func.func @computed
// CHECK:         torch.aten.linear
func.func @computed(%x: !torch.vtensor<[?,64],bf16>, %a: !torch.vtensor<[128,64],bf16>) -> !torch.vtensor<[?,128],bf16> {
  %none = torch.constant.none
  %w = torch.aten.tanh %a : !torch.vtensor<[128,64],bf16> -> !torch.vtensor<[128,64],bf16>
  // expected-remark @+1 {{plain-product: refused at torch.aten.linear: the weight is computed at run time, or given with each call, so the product runs on torch; pass the weight as a parameter}}
  %y = torch.aten.linear %x, %w, %none : !torch.vtensor<[?,64],bf16>, !torch.vtensor<[128,64],bf16>, !torch.none -> !torch.vtensor<[?,128],bf16>
  return %y : !torch.vtensor<[?,128],bf16>
}

// -----

// So may an input.
// CHECK-LABEL: func.func @given
// CHECK:         torch.aten.linear
func.func @given(%x: !torch.vtensor<[?,64],bf16>, %w: !torch.vtensor<[128,64],bf16> {qfuse.kind = "input", qfuse.name = "keys"}) -> !torch.vtensor<[?,128],bf16> {
  %none = torch.constant.none
  // expected-remark @+1 {{plain-product: refused at torch.aten.linear (keys): the weight is computed at run time, or given with each call}}
  %y = torch.aten.linear %x, %w, %none : !torch.vtensor<[?,64],bf16>, !torch.vtensor<[128,64],bf16>, !torch.none -> !torch.vtensor<[?,128],bf16>
  return %y : !torch.vtensor<[?,128],bf16>
}

// -----

// A product has one type.
// CHECK-LABEL: func.func @mixed
// CHECK:         torch.aten.linear
func.func @mixed(%x: !torch.vtensor<[?,64],f32>, %w: !torch.vtensor<[128,64],bf16>) -> !torch.vtensor<[?,128],f32> {
  %none = torch.constant.none
  // expected-remark @+1 {{plain-product: refused at torch.aten.linear: x is tensor<?x64xf32> and the weight tensor<128x64xbf16>, so the product runs on torch; use one of f16, bf16 and f32 for both and the bias}}
  %y = torch.aten.linear %x, %w, %none : !torch.vtensor<[?,64],f32>, !torch.vtensor<[128,64],bf16>, !torch.none -> !torch.vtensor<[?,128],f32>
  return %y : !torch.vtensor<[?,128],f32>
}

// -----

// A vector times a matrix is none of ours.
// CHECK-LABEL: func.func @vector
// CHECK:         torch.aten.linear
func.func @vector(%x: !torch.vtensor<[64],bf16>, %w: !torch.vtensor<[128,64],bf16>) -> !torch.vtensor<[128],bf16> {
  %none = torch.constant.none
  // expected-remark @+1 {{plain-product: refused at torch.aten.linear: x is tensor<64xbf16> and the weight tensor<128x64xbf16>, so the product runs on torch; use x [.., M, K] and a static weight [N, K]}}
  %y = torch.aten.linear %x, %w, %none : !torch.vtensor<[64],bf16>, !torch.vtensor<[128,64],bf16>, !torch.none -> !torch.vtensor<[128],bf16>
  return %y : !torch.vtensor<[128],bf16>
}
