// RUN: qfuse-opt --qfuse-raise-attention --split-input-file %s | filecheck %s
// RUN: qfuse-opt --qfuse-raise-attention --split-input-file --verify-diagnostics %s
// RUN: qfuse-opt --qfuse-raise-attention --split-input-file --verify-fusion %s

// Heads come first in torch, tokens in the kernel.
// CHECK-LABEL: func.func @decoder
// CHECK:         %[[T:.+]] = torch.aten.transpose.int %arg0, %int1{{.*}}, %int2
// CHECK:         %[[Q:.+]] = torch_c.to_builtin_tensor %[[T]]
// CHECK:         %[[Y:.+]] = "qfuse.attention"(%[[Q]], %{{.*}}, %{{.*}}, %{{.*}}) {{.*}}scale = 1.250000e-01 : f64, window = 7 : i64
// CHECK-SAME:      -> tensor<1x?x4x24xbf16>
// CHECK-NOT:     torch.operator
func.func @decoder(%q: !torch.vtensor<[1,4,?,16],bf16>, %k: !torch.vtensor<[1,2,64,16],bf16>, %v: !torch.vtensor<[1,2,64,24],bf16>, %p: !torch.vtensor<[?],si64>) -> !torch.vtensor<[1,?,4,24],bf16> {
  %scale = torch.constant.float 1.250000e-01
  %window = torch.constant.int 7
  // expected-remark @+1 {{attention: fired at torch.operator}}
  %y = torch.operator "torch.qfuse.attention"(%q, %k, %v, %p, %scale, %window) : (!torch.vtensor<[1,4,?,16],bf16>, !torch.vtensor<[1,2,64,16],bf16>, !torch.vtensor<[1,2,64,24],bf16>, !torch.vtensor<[?],si64>, !torch.float, !torch.int) -> !torch.vtensor<[1,?,4,24],bf16>
  return %y : !torch.vtensor<[1,?,4,24],bf16>
}

// -----

// Kernels have to know where a head of the caches begins.
// CHECK-LABEL: func.func @open_caches
// CHECK:         torch.operator "torch.qfuse.attention"
func.func @open_caches(%q: !torch.vtensor<[1,4,?,16],bf16>, %k: !torch.vtensor<[1,2,?,16],bf16>, %v: !torch.vtensor<[1,2,?,16],bf16>, %p: !torch.vtensor<[?],si64>) -> !torch.vtensor<[1,?,4,16],bf16> {
  %scale = torch.constant.float 1.250000e-01
  %window = torch.constant.int 0
  // expected-remark @+1 {{attention: refused at torch.operator: the batch of q tensor<1x4x?x16xbf16>, or an extent of the caches tensor<1x2x?x16xbf16>, is dynamic}}
  %y = torch.operator "torch.qfuse.attention"(%q, %k, %v, %p, %scale, %window) : (!torch.vtensor<[1,4,?,16],bf16>, !torch.vtensor<[1,2,?,16],bf16>, !torch.vtensor<[1,2,?,16],bf16>, !torch.vtensor<[?],si64>, !torch.float, !torch.int) -> !torch.vtensor<[1,?,4,16],bf16>
  return %y : !torch.vtensor<[1,?,4,16],bf16>
}

// -----

// CHECK-LABEL: func.func @heads_that_do_not_divide
// CHECK:         torch.operator "torch.qfuse.attention"
func.func @heads_that_do_not_divide(%q: !torch.vtensor<[1,3,?,16],bf16>, %k: !torch.vtensor<[1,2,64,16],bf16>, %p: !torch.vtensor<[?],si64>) -> !torch.vtensor<[1,?,3,16],bf16> {
  %scale = torch.constant.float 1.250000e-01
  %window = torch.constant.int 0
  // expected-remark @+1 {{attention: refused at torch.operator: 3 heads of q are no multiple of the 2 of k}}
  %y = torch.operator "torch.qfuse.attention"(%q, %k, %k, %p, %scale, %window) : (!torch.vtensor<[1,3,?,16],bf16>, !torch.vtensor<[1,2,64,16],bf16>, !torch.vtensor<[1,2,64,16],bf16>, !torch.vtensor<[?],si64>, !torch.float, !torch.int) -> !torch.vtensor<[1,?,3,16],bf16>
  return %y : !torch.vtensor<[1,?,3,16],bf16>
}

// -----

// CHECK-LABEL: func.func @unknown_scale
// CHECK:         torch.operator "torch.qfuse.attention"
func.func @unknown_scale(%q: !torch.vtensor<[1,2,?,16],bf16>, %k: !torch.vtensor<[1,2,64,16],bf16>, %p: !torch.vtensor<[?],si64>, %scale: !torch.float) -> !torch.vtensor<[1,?,2,16],bf16> {
  %window = torch.constant.int 0
  // expected-remark @+1 {{attention: refused at torch.operator: the scale or the window is not a constant}}
  %y = torch.operator "torch.qfuse.attention"(%q, %k, %k, %p, %scale, %window) : (!torch.vtensor<[1,2,?,16],bf16>, !torch.vtensor<[1,2,64,16],bf16>, !torch.vtensor<[1,2,64,16],bf16>, !torch.vtensor<[?],si64>, !torch.float, !torch.int) -> !torch.vtensor<[1,?,2,16],bf16>
  return %y : !torch.vtensor<[1,?,2,16],bf16>
}
