// RUN: qfuse-opt --qfuse-raise-torch --remarks %s 2>&1 | filecheck %s --check-prefix=RAISED
// RUN: qfuse-opt --qfuse-raise-torch --qfuse-expand-quantize --qfuse-fuse-gate-up --qfuse-fuse-act-quantize --remarks %s 2>&1 | filecheck %s --check-prefix=FUSED

// Experts with clamped GLUs and with biases.

// RAISED-DAG: moe-experts: refused at torch.operator (no_limit): limit is -7.0; it must be positive
// RAISED-DAG: moe-experts: refused at torch.operator (no_alpha): alpha is 1.5, but act "silu" has none; swiglu_oai has
// RAISED-DAG: moe-experts: refused at torch.operator (other_type): down_bias is tensor<16x256xf32>; use tensor<16x256xbf16>
// RAISED-DAG: moe-experts: refused at torch.operator (one_for_all): gate_up_bias is tensor<384xbf16>; use tensor<16x384xbf16>

// The bias of gate and up is cut in two, once; each joins its part, rounded before. So does that of down.
// RAISED-LABEL: func.func @gpt_oss
// RAISED:         %[[G:.+]] = torch.aten.contiguous
// RAISED:         %[[GATE:.+]] = torch_c.to_builtin_tensor %[[G]]
// RAISED:         %[[U:.+]] = torch.aten.contiguous
// RAISED:         %[[UP:.+]] = torch_c.to_builtin_tensor %[[U]]
// RAISED:         %[[GU:.+]]:2 = "qfuse.group_matmul"({{.*}}, %[[GATE]], %[[UP]]) ({
// RAISED-NEXT:    ^bb0(%[[A0:.+]]: f32, %[[A1:.+]]: f32, %[[B0:.+]]: f32, %[[B1:.+]]: f32):
// RAISED:           arith.truncf %[[A0]] : f32 to bf16
// RAISED:           %[[S0:.+]] = arith.addf %{{.+}}, %[[B0]]
// RAISED:           %[[S1:.+]] = arith.addf %{{.+}}, %[[B1]]
// RAISED:           "qfuse.yield"(%[[S0]], %[[S1]])
// RAISED:         maps = ["[E,N]", "[E,N]"]
// RAISED:         "qfuse.glu"(%[[GU]]#0, %[[GU]]#1) {act = "swiglu_oai", alpha = 1.500000e+00 : f64, limit = 7.000000e+00 : f64
// RAISED:         "qfuse.group_matmul"
// RAISED:         maps = ["[E,N]"]

// All of it is one product, which quantizes what it makes.
// FUSED-LABEL: func.func @gpt_oss
// FUSED:         "qfuse.group_matmul"
// FUSED:           arith.minimumf
// FUSED:           arith.maximumf
// FUSED:           math.exp
// FUSED:         maps = ["[E,N]", "[E,N]"]
// FUSED-SAME:    -> !qfuse.qtensor<tensor<?x4x192xf8E4M3FN>
// FUSED-NOT:     "qfuse.glu"
// FUSED:         "qfuse.group_matmul"
func.func @gpt_oss(
    %rows: !torch.vtensor<[?,256],bf16>, %ids: !torch.vtensor<[?,4],si64>, %weights: !torch.vtensor<[?,4],f32>,
    %gate_up: !torch.vtensor<[16,448,256],f8E4M3FN> {qfuse.name = "gpt_oss"}, %gate_up_scale: !torch.vtensor<[16,4,2],f32>,
    %down: !torch.vtensor<[16,256,192],f8E4M3FN>, %down_scale: !torch.vtensor<[16,2,2],f32>,
    %gate_up_bias: !torch.vtensor<[16,384],bf16>, %down_bias: !torch.vtensor<[16,256],bf16>) -> !torch.vtensor<[?,256],bf16> {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %inner = torch.constant.int 192
  %group = torch.constant.int 128
  %wblock = torch.prim.ListConstruct %group, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %xblock = torch.prim.ListConstruct %one, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %act = torch.constant.str "swiglu_oai"
  %limit = torch.constant.float 7.0
  %alpha = torch.constant.float 1.5
  %plain = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %same = torch.constant.str ""
  %no = torch.constant.none
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %y = torch.operator "torch.qfuse.moe_experts"(%rows, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %wblock, %xblock, %act, %limit, %alpha, %gate_up_bias, %down_bias, %plain, %dynamic, %no, %no, %asbefore, %asbefore, %same, %none, %none) : (!torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>, !torch.vtensor<[16,448,256],f8E4M3FN>, !torch.vtensor<[16,4,2],f32>, !torch.vtensor<[16,256,192],f8E4M3FN>, !torch.vtensor<[16,2,2],f32>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.float, !torch.float, !torch.vtensor<[16,384],bf16>, !torch.vtensor<[16,256],bf16>, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,256],bf16>
  return %y : !torch.vtensor<[?,256],bf16>
}

// What transformers' FP8Experts do with a swiglu_limit.
// RAISED-LABEL: func.func @clamped
// RAISED:         "qfuse.glu"(%{{.+}}, %{{.+}}) {act = "silu", limit = 1.000000e+01 : f64
// FUSED-LABEL: func.func @clamped
// FUSED:           arith.minimumf
// FUSED-NOT:     "qfuse.glu"
// FUSED:         return
func.func @clamped(
    %rows: !torch.vtensor<[?,256],bf16>, %ids: !torch.vtensor<[?,4],si64>, %weights: !torch.vtensor<[?,4],f32>,
    %gate_up: !torch.vtensor<[16,448,256],f8E4M3FN> {qfuse.name = "clamped"}, %gate_up_scale: !torch.vtensor<[16,4,2],f32>,
    %down: !torch.vtensor<[16,256,192],f8E4M3FN>, %down_scale: !torch.vtensor<[16,2,2],f32>) -> !torch.vtensor<[?,256],bf16> {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %inner = torch.constant.int 192
  %group = torch.constant.int 128
  %wblock = torch.prim.ListConstruct %group, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %xblock = torch.prim.ListConstruct %one, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %act = torch.constant.str "silu"
  %limit = torch.constant.float 10.0
  %plain = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %same = torch.constant.str ""
  %no = torch.constant.none
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %y = torch.operator "torch.qfuse.moe_experts"(%rows, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %wblock, %xblock, %act, %limit, %none, %none, %none, %plain, %dynamic, %no, %no, %asbefore, %asbefore, %same, %none, %none) : (!torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>, !torch.vtensor<[16,448,256],f8E4M3FN>, !torch.vtensor<[16,4,2],f32>, !torch.vtensor<[16,256,192],f8E4M3FN>, !torch.vtensor<[16,2,2],f32>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.float, !torch.none, !torch.none, !torch.none, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,256],bf16>
  return %y : !torch.vtensor<[?,256],bf16>
}

// RAISED-LABEL: func.func @no_limit
// RAISED:         torch.operator "torch.qfuse.moe_experts"
func.func @no_limit(
    %rows: !torch.vtensor<[?,256],bf16>, %ids: !torch.vtensor<[?,4],si64>, %weights: !torch.vtensor<[?,4],f32>,
    %gate_up: !torch.vtensor<[16,448,256],f8E4M3FN> {qfuse.name = "no_limit"}, %gate_up_scale: !torch.vtensor<[16,4,2],f32>,
    %down: !torch.vtensor<[16,256,192],f8E4M3FN>, %down_scale: !torch.vtensor<[16,2,2],f32>) -> !torch.vtensor<[?,256],bf16> {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %inner = torch.constant.int 192
  %group = torch.constant.int 128
  %wblock = torch.prim.ListConstruct %group, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %xblock = torch.prim.ListConstruct %one, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %act = torch.constant.str "silu"
  %limit = torch.constant.float -7.0
  %plain = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %same = torch.constant.str ""
  %no = torch.constant.none
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %y = torch.operator "torch.qfuse.moe_experts"(%rows, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %wblock, %xblock, %act, %limit, %none, %none, %none, %plain, %dynamic, %no, %no, %asbefore, %asbefore, %same, %none, %none) : (!torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>, !torch.vtensor<[16,448,256],f8E4M3FN>, !torch.vtensor<[16,4,2],f32>, !torch.vtensor<[16,256,192],f8E4M3FN>, !torch.vtensor<[16,2,2],f32>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.float, !torch.none, !torch.none, !torch.none, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,256],bf16>
  return %y : !torch.vtensor<[?,256],bf16>
}

// RAISED-LABEL: func.func @no_alpha
// RAISED:         torch.operator "torch.qfuse.moe_experts"
func.func @no_alpha(
    %rows: !torch.vtensor<[?,256],bf16>, %ids: !torch.vtensor<[?,4],si64>, %weights: !torch.vtensor<[?,4],f32>,
    %gate_up: !torch.vtensor<[16,448,256],f8E4M3FN> {qfuse.name = "no_alpha"}, %gate_up_scale: !torch.vtensor<[16,4,2],f32>,
    %down: !torch.vtensor<[16,256,192],f8E4M3FN>, %down_scale: !torch.vtensor<[16,2,2],f32>) -> !torch.vtensor<[?,256],bf16> {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %inner = torch.constant.int 192
  %group = torch.constant.int 128
  %wblock = torch.prim.ListConstruct %group, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %xblock = torch.prim.ListConstruct %one, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %act = torch.constant.str "silu"
  %alpha = torch.constant.float 1.5
  %plain = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %same = torch.constant.str ""
  %no = torch.constant.none
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %y = torch.operator "torch.qfuse.moe_experts"(%rows, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %wblock, %xblock, %act, %none, %alpha, %none, %none, %plain, %dynamic, %no, %no, %asbefore, %asbefore, %same, %none, %none) : (!torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>, !torch.vtensor<[16,448,256],f8E4M3FN>, !torch.vtensor<[16,4,2],f32>, !torch.vtensor<[16,256,192],f8E4M3FN>, !torch.vtensor<[16,2,2],f32>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.float, !torch.none, !torch.none, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,256],bf16>
  return %y : !torch.vtensor<[?,256],bf16>
}

// A bias is added in the type of x.
// RAISED-LABEL: func.func @other_type
// RAISED:         torch.operator "torch.qfuse.moe_experts"
func.func @other_type(
    %rows: !torch.vtensor<[?,256],bf16>, %ids: !torch.vtensor<[?,4],si64>, %weights: !torch.vtensor<[?,4],f32>,
    %gate_up: !torch.vtensor<[16,448,256],f8E4M3FN> {qfuse.name = "other_type"}, %gate_up_scale: !torch.vtensor<[16,4,2],f32>,
    %down: !torch.vtensor<[16,256,192],f8E4M3FN>, %down_scale: !torch.vtensor<[16,2,2],f32>,
    %gate_up_bias: !torch.vtensor<[16,384],bf16>, %down_bias: !torch.vtensor<[16,256],f32>) -> !torch.vtensor<[?,256],bf16> {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %inner = torch.constant.int 192
  %group = torch.constant.int 128
  %wblock = torch.prim.ListConstruct %group, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %xblock = torch.prim.ListConstruct %one, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %act = torch.constant.str "silu"
  %plain = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %same = torch.constant.str ""
  %no = torch.constant.none
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %y = torch.operator "torch.qfuse.moe_experts"(%rows, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %wblock, %xblock, %act, %none, %none, %gate_up_bias, %down_bias, %plain, %dynamic, %no, %no, %asbefore, %asbefore, %same, %none, %none) : (!torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>, !torch.vtensor<[16,448,256],f8E4M3FN>, !torch.vtensor<[16,4,2],f32>, !torch.vtensor<[16,256,192],f8E4M3FN>, !torch.vtensor<[16,2,2],f32>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none, !torch.vtensor<[16,384],bf16>, !torch.vtensor<[16,256],f32>, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,256],bf16>
  return %y : !torch.vtensor<[?,256],bf16>
}

// Every expert has its own.
// RAISED-LABEL: func.func @one_for_all
// RAISED:         torch.operator "torch.qfuse.moe_experts"
func.func @one_for_all(
    %rows: !torch.vtensor<[?,256],bf16>, %ids: !torch.vtensor<[?,4],si64>, %weights: !torch.vtensor<[?,4],f32>,
    %gate_up: !torch.vtensor<[16,448,256],f8E4M3FN> {qfuse.name = "one_for_all"}, %gate_up_scale: !torch.vtensor<[16,4,2],f32>,
    %down: !torch.vtensor<[16,256,192],f8E4M3FN>, %down_scale: !torch.vtensor<[16,2,2],f32>,
    %gate_up_bias: !torch.vtensor<[384],bf16>, %down_bias: !torch.vtensor<[16,256],bf16>) -> !torch.vtensor<[?,256],bf16> {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %inner = torch.constant.int 192
  %group = torch.constant.int 128
  %wblock = torch.prim.ListConstruct %group, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %xblock = torch.prim.ListConstruct %one, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %act = torch.constant.str "silu"
  %plain = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %same = torch.constant.str ""
  %no = torch.constant.none
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %y = torch.operator "torch.qfuse.moe_experts"(%rows, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %wblock, %xblock, %act, %none, %none, %gate_up_bias, %down_bias, %plain, %dynamic, %no, %no, %asbefore, %asbefore, %same, %none, %none) : (!torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>, !torch.vtensor<[16,448,256],f8E4M3FN>, !torch.vtensor<[16,4,2],f32>, !torch.vtensor<[16,256,192],f8E4M3FN>, !torch.vtensor<[16,2,2],f32>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none, !torch.vtensor<[384],bf16>, !torch.vtensor<[16,256],bf16>, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,256],bf16>
  return %y : !torch.vtensor<[?,256],bf16>
}
