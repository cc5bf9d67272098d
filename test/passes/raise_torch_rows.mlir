// RUN: qfuse-opt %s --qfuse-raise-torch=rows=true --verify-diagnostics --remarks
// RUN: qfuse-opt %s --qfuse-raise-torch=rows=true | filecheck %s

// Kernels for GPUs read a weight's rows, as an embedding does.

// The head of a language model, whose weight is the embedding, too.
// CHECK-LABEL: func.func @tied
// CHECK:         torch.aten.embedding
// CHECK:         "qfuse.matmul"
func.func @tied(%x: !torch.vtensor<[?,64],f16>, %table: !torch.vtensor<[1000,64],f16>, %ids: !torch.vtensor<[?],si64>) -> (!torch.vtensor<[?,1000],f16>, !torch.vtensor<[?,64],f16>) {
  %none = torch.constant.none
  %minus = torch.constant.int -1
  %false = torch.constant.bool false
  %e = torch.aten.embedding %table, %ids, %minus, %false, %false : !torch.vtensor<[1000,64],f16>, !torch.vtensor<[?],si64>, !torch.int, !torch.bool, !torch.bool -> !torch.vtensor<[?,64],f16>
  // expected-remark @+1 {{plain-product: fired at torch.aten.linear}}
  %y = torch.aten.linear %x, %table, %none : !torch.vtensor<[?,64],f16>, !torch.vtensor<[1000,64],f16>, !torch.none -> !torch.vtensor<[?,1000],f16>
  return %y, %e : !torch.vtensor<[?,1000],f16>, !torch.vtensor<[?,64],f16>
}
