// RUN: qfuse-opt --qfuse-raise-torch --remarks %s 2>&1 | filecheck %s --check-prefix=RAISED
// RUN: qfuse-opt --qfuse-raise-torch --qfuse-expand-quantize --qfuse-fuse-gate-up --qfuse-fuse-epilogue --qfuse-fuse-norm-quantize --qfuse-fuse-act-quantize --remarks %s 2>&1 | filecheck %s --check-prefix=FUSED

// A layer as the front end writes it: the experts are one operator, and views lead to its [T, H] and back.
// RAISED-DAG: moe-experts: fired at torch.operator
// RAISED-DAG: moe-experts: refused at torch.operator (odd): the activation is tanh; use silu, gelu, gelu_tanh, relu, swiglu_oai
// RAISED-DAG: moe-experts: fired at torch.operator (plain)
// RAISED-DAG: moe-experts: refused at torch.operator (given): the weight is computed at run time, or given with each call, so the product runs on torch; pass the weight as a parameter
// RAISED-DAG: moe-experts: refused at torch.operator (wide): x is tensor<?x256xbf16> and the weights tensor<16x384x256xbf16> and tensor<16x256x192xf16>; use one type for all
// RAISED-DAG: select-experts: fired at torch.operator
// RAISED-DAG: select-experts: refused at torch.operator (how many): an option of the router is not a constant
// RAISED-DAG: select-experts: refused at torch.operator (scores): the scoring is tanh; use softmax, sigmoid
// RAISED-DAG: select-experts: refused at torch.operator (unequal): 2 of 3 groups of 16 experts are used; use equal groups, 1 or more
// RAISED-DAG: select-experts: refused at torch.operator (scarce): a token chooses 4 experts of 2; use 1 to 2
// RAISED-DAG: select-experts: refused at torch.operator (any): the logits are tensor<?x?xf32>; use float logits [T, E] with E known
// RAISED-DAG: select-experts: refused at torch.operator (rough): the bias is tensor<16xbf16>; use tensor<16xf32>
// RAISED-LABEL: func.func @main
// RAISED:         %[[SLOTS:.+]]:3 = "qfuse.route"(%{{.+}}) {num_experts = 16 : i64} : (tensor<?x4xi64>) -> (tensor<?x4xi32>, tensor<?x4xi32>, tensor<17xi32>)
// RAISED:         %[[GU:.+]]:2 = "qfuse.group_matmul"(%[[X:.+]], %{{.+}}, %[[SLOTS]]#2, %[[SLOTS]]#1)
// RAISED:         parts = array<i64: 192, 192>, qfuse.input_scheme = #qfuse.scheme<array<i64: 1, 128>
// RAISED-SAME:    (tensor<1x?x256xbf16>, {{.*}}) -> (tensor<?x4x192xbf16>, tensor<?x4x192xbf16>)
// RAISED:         %[[H:.+]] = "qfuse.glu"(%[[GU]]#0, %[[GU]]#1) {act = "silu"
// RAISED:         %[[Y:.+]] = "qfuse.group_matmul"(%[[H]], %{{.+}}, %[[SLOTS]]#2)
// RAISED:         %[[C:.+]] = "qfuse.combine"(%[[Y]], %[[SLOTS]]#0, %{{.+}}) {operandSegmentSizes = array<i32: 1, 1, 1, 0>} : ({{.*}}) -> tensor<1x?x256xbf16>
// RAISED:         "qfuse.add"(%{{.+}}, %[[C]])

// The router reads the norm, the experts its quantization; nothing is left between the products.
// FUSED-DAG:   gate-up: fired at qfuse.glu
// FUSED-DAG:   product-quantize: fired at qfuse.quantize
// FUSED-DAG:   combine-residual: fired at qfuse.add
// FUSED-DAG:   norm-quantize: fired
// FUSED-LABEL: func.func @main
// FUSED:         %[[N:.+]]:2 = "qfuse.rms_norm"({{.*}}) {{.*}} -> (tensor<1x?x256xbf16>, !qfuse.qtensor<tensor<1x?x256xf8E4M3FN>
// FUSED:         torch.aten.view
// FUSED:         %[[HQ:.+]] = "qfuse.group_matmul"(%[[N]]#1,
// FUSED:           math.exp
// FUSED:         -> !qfuse.qtensor<tensor<?x4x192xf8E4M3FN>
// FUSED:         %[[Y:.+]] = "qfuse.group_matmul"(%[[HQ]],
// FUSED:         "qfuse.combine"(%[[Y]], %{{.+}}, %{{.+}}, %{{.+}}) {operandSegmentSizes = array<i32: 1, 1, 1, 1>}
// FUSED-NOT:     qfuse.quantize
// FUSED-NOT:     qfuse.add
// FUSED:         return
func.func @main(
    %x: !torch.vtensor<[1,?,256],bf16>, %norm: !torch.vtensor<[256],bf16>, %ids: !torch.vtensor<[?,4],si64>,
    %router: !torch.vtensor<[16,256],bf16>, %weights: !torch.vtensor<[?,4],f32>,
    %gate_up: !torch.vtensor<[16,448,256],f8E4M3FN> {qfuse.name = "gate_up"}, %gate_up_scale: !torch.vtensor<[16,4,2],f32>,
    %down: !torch.vtensor<[16,256,192],f8E4M3FN>, %down_scale: !torch.vtensor<[16,2,2],f32>)
    -> (!torch.vtensor<[1,?,256],bf16>, !torch.vtensor<[?,16],bf16>) {
  %minus = torch.constant.int -1
  %one = torch.constant.int 1
  %width = torch.constant.int 256
  %inner = torch.constant.int 192
  %group = torch.constant.int 128
  %silu = torch.constant.str "silu"
  %none = torch.constant.none
  %flat = torch.prim.ListConstruct %minus, %width : (!torch.int, !torch.int) -> !torch.list<int>
  %full = torch.prim.ListConstruct %one, %minus, %width : (!torch.int, !torch.int, !torch.int) -> !torch.list<int>
  %wblock = torch.prim.ListConstruct %group, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %xblock = torch.prim.ListConstruct %one, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %n0 = torch_c.to_builtin_tensor %x : !torch.vtensor<[1,?,256],bf16> -> tensor<1x?x256xbf16>
  %n1 = torch_c.to_builtin_tensor %norm : !torch.vtensor<[256],bf16> -> tensor<256xbf16>
  %n2 = "qfuse.rms_norm"(%n0, %n1) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (tensor<1x?x256xbf16>, tensor<256xbf16>) -> tensor<1x?x256xbf16>
  %n = torch_c.from_builtin_tensor %n2 : tensor<1x?x256xbf16> -> !torch.vtensor<[1,?,256],bf16>
  %rows = torch.aten.view %n, %flat : !torch.vtensor<[1,?,256],bf16>, !torch.list<int> -> !torch.vtensor<[?,256],bf16>
  %logits = torch.aten.linear %rows, %router, %none : !torch.vtensor<[?,256],bf16>, !torch.vtensor<[16,256],bf16>, !torch.none -> !torch.vtensor<[?,16],bf16>
  %plain = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %same = torch.constant.str ""
  %no = torch.constant.none
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %y = torch.operator "torch.qfuse.moe_experts"(%rows, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %wblock, %xblock, %silu, %none, %none, %none, %none, %plain, %dynamic, %no, %no, %asbefore, %asbefore, %same, %none, %none) : (!torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>, !torch.vtensor<[16,448,256],f8E4M3FN>, !torch.vtensor<[16,4,2],f32>, !torch.vtensor<[16,256,192],f8E4M3FN>, !torch.vtensor<[16,2,2],f32>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none, !torch.none, !torch.none, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,256],bf16>
  %back = torch.aten.view %y, %full : !torch.vtensor<[?,256],bf16>, !torch.list<int> -> !torch.vtensor<[1,?,256],bf16>
  %sum = torch.aten.add.Tensor %x, %back, %one : !torch.vtensor<[1,?,256],bf16>, !torch.vtensor<[1,?,256],bf16>, !torch.int -> !torch.vtensor<[1,?,256],bf16>
  return %sum, %logits : !torch.vtensor<[1,?,256],bf16>, !torch.vtensor<[?,16],bf16>
}

// An activation that no kernel has: the operator stays, and says why.
// RAISED-LABEL: func.func @look_alike
// RAISED-NOT:     qfuse.route
// RAISED:         torch.operator "torch.qfuse.moe_experts"
func.func @look_alike(
    %rows: !torch.vtensor<[?,256],bf16>, %ids: !torch.vtensor<[?,4],si64>, %weights: !torch.vtensor<[?,4],f32>,
    %gate_up: !torch.vtensor<[16,448,256],f8E4M3FN> {qfuse.name = "odd"}, %gate_up_scale: !torch.vtensor<[16,4,2],f32>,
    %down: !torch.vtensor<[16,256,192],f8E4M3FN>, %down_scale: !torch.vtensor<[16,2,2],f32>) -> !torch.vtensor<[?,256],bf16> {
  %one = torch.constant.int 1
  %inner = torch.constant.int 192
  %group = torch.constant.int 128
  %tanh = torch.constant.str "tanh"
  %none = torch.constant.none
  %wblock = torch.prim.ListConstruct %group, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %xblock = torch.prim.ListConstruct %one, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %plain = torch.constant.str "none"
  %dynamic = torch.constant.str "dynamic"
  %same = torch.constant.str ""
  %no = torch.constant.none
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %y = torch.operator "torch.qfuse.moe_experts"(%rows, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %wblock, %xblock, %tanh, %none, %none, %none, %none, %plain, %dynamic, %no, %no, %asbefore, %asbefore, %same, %none, %none) : (!torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>, !torch.vtensor<[16,448,256],f8E4M3FN>, !torch.vtensor<[16,4,2],f32>, !torch.vtensor<[16,256,192],f8E4M3FN>, !torch.vtensor<[16,2,2],f32>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none, !torch.none, !torch.none, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,256],bf16>
  return %y : !torch.vtensor<[?,256],bf16>
}

// Routers of Qwen3-MoE and DeepSeek-V3, and one whose weights are not divided by their sum.
// RAISED-LABEL: func.func @routers
// RAISED-NOT:     torch.operator
// RAISED:         "qfuse.select_experts"(%{{.+}}) {groups_used = 1 : i64, normalize = true, num_groups = 1 : i64, scale = 1.000000e+00 : f64, scoring = "softmax"} : (tensor<?x16xbf16>) -> (tensor<?x4xi64>, tensor<?x4xbf16>)
// RAISED-NOT:     torch.operator
// RAISED:         "qfuse.select_experts"(%{{.+}}, %{{.+}}) {groups_used = 2 : i64, normalize = true, num_groups = 4 : i64, scale = 2.500000e+00 : f64, scoring = "sigmoid"} : (tensor<?x16xf32>, tensor<16xf32>) -> (tensor<?x4xi64>, tensor<?x4xf32>)
// RAISED-NOT:     torch.operator
// RAISED:         "qfuse.select_experts"(%{{.+}}) {{{.*}}normalize = false{{.*}} : (tensor<?x16xbf16>) -> (tensor<?x4xi64>, tensor<?x4xf32>)
// RAISED-NOT:     torch.operator
// RAISED:         return
func.func @routers(%soft: !torch.vtensor<[?,16],bf16>, %sig: !torch.vtensor<[?,16],f32>, %bias: !torch.vtensor<[16],f32>)
    -> (!torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],bf16>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>) {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %two = torch.constant.int 2
  %four = torch.constant.int 4
  %f32 = torch.constant.int 6
  %unit = torch.constant.float 1.0
  %more = torch.constant.float 2.5
  %yes = torch.constant.bool true
  %no = torch.constant.bool false
  %softmax = torch.constant.str "softmax"
  %sigmoid = torch.constant.str "sigmoid"
  %a:2 = torch.operator "torch.qfuse.select_experts"(%soft, %none, %four, %softmax, %yes, %unit, %one, %one, %f32) : (!torch.vtensor<[?,16],bf16>, !torch.none, !torch.int, !torch.str, !torch.bool, !torch.float, !torch.int, !torch.int, !torch.int) -> (!torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],bf16>)
  %b:2 = torch.operator "torch.qfuse.select_experts"(%sig, %bias, %four, %sigmoid, %yes, %more, %four, %two, %f32) : (!torch.vtensor<[?,16],f32>, !torch.vtensor<[16],f32>, !torch.int, !torch.str, !torch.bool, !torch.float, !torch.int, !torch.int, !torch.int) -> (!torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>)
  %c:2 = torch.operator "torch.qfuse.select_experts"(%soft, %none, %four, %softmax, %no, %unit, %one, %one, %f32) : (!torch.vtensor<[?,16],bf16>, !torch.none, !torch.int, !torch.str, !torch.bool, !torch.float, !torch.int, !torch.int, !torch.int) -> (!torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>)
  return %a#0, %a#1, %b#0, %b#1, %c#0, %c#1 : !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],bf16>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>
}

// What no kernel could do stays with torch, and says why.
// RAISED-LABEL: func.func @odd_routers
// RAISED-COUNT-6: torch.operator "torch.qfuse.select_experts"
// RAISED:         return
func.func @odd_routers(
    %howmany: !torch.vtensor<[?,16],f32> {qfuse.name = "how many"}, %scores: !torch.vtensor<[?,16],f32> {qfuse.name = "scores"}, %unequal: !torch.vtensor<[?,16],f32> {qfuse.name = "unequal"},
    %scarce: !torch.vtensor<[?,16],f32> {qfuse.name = "scarce"}, %any: !torch.vtensor<[?,?],f32> {qfuse.name = "any"}, %rough: !torch.vtensor<[?,16],f32> {qfuse.name = "rough"},
    %bias: !torch.vtensor<[16],bf16>, %k: !torch.int) -> (!torch.vtensor<[?,?],si64>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],si64>) {
  %none = torch.constant.none
  %one = torch.constant.int 1
  %two = torch.constant.int 2
  %three = torch.constant.int 3
  %four = torch.constant.int 4
  %eight = torch.constant.int 8
  %f32 = torch.constant.int 6
  %unit = torch.constant.float 1.0
  %yes = torch.constant.bool true
  %softmax = torch.constant.str "softmax"
  %tanh = torch.constant.str "tanh"
  %r0:2 = torch.operator "torch.qfuse.select_experts"(%howmany, %none, %k, %softmax, %yes, %unit, %one, %one, %f32) : (!torch.vtensor<[?,16],f32>, !torch.none, !torch.int, !torch.str, !torch.bool, !torch.float, !torch.int, !torch.int, !torch.int) -> (!torch.vtensor<[?,?],si64>, !torch.vtensor<[?,?],f32>)
  %r1:2 = torch.operator "torch.qfuse.select_experts"(%scores, %none, %four, %tanh, %yes, %unit, %one, %one, %f32) : (!torch.vtensor<[?,16],f32>, !torch.none, !torch.int, !torch.str, !torch.bool, !torch.float, !torch.int, !torch.int, !torch.int) -> (!torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>)
  %r2:2 = torch.operator "torch.qfuse.select_experts"(%unequal, %none, %four, %softmax, %yes, %unit, %three, %two, %f32) : (!torch.vtensor<[?,16],f32>, !torch.none, !torch.int, !torch.str, !torch.bool, !torch.float, !torch.int, !torch.int, !torch.int) -> (!torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>)
  %r3:2 = torch.operator "torch.qfuse.select_experts"(%scarce, %none, %four, %softmax, %yes, %unit, %eight, %one, %f32) : (!torch.vtensor<[?,16],f32>, !torch.none, !torch.int, !torch.str, !torch.bool, !torch.float, !torch.int, !torch.int, !torch.int) -> (!torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>)
  %r4:2 = torch.operator "torch.qfuse.select_experts"(%any, %none, %four, %softmax, %yes, %unit, %one, %one, %f32) : (!torch.vtensor<[?,?],f32>, !torch.none, !torch.int, !torch.str, !torch.bool, !torch.float, !torch.int, !torch.int, !torch.int) -> (!torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>)
  %r5:2 = torch.operator "torch.qfuse.select_experts"(%rough, %bias, %four, %softmax, %yes, %unit, %one, %one, %f32) : (!torch.vtensor<[?,16],f32>, !torch.vtensor<[16],bf16>, !torch.int, !torch.str, !torch.bool, !torch.float, !torch.int, !torch.int, !torch.int) -> (!torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>)
  return %r0#0, %r1#0, %r2#0, %r3#0, %r4#0, %r5#0 : !torch.vtensor<[?,?],si64>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],si64>
}

// Experts with plain weights, each part of which begins where the one before ends.
// RAISED-LABEL: func.func @plain
// RAISED:         "qfuse.route"
// RAISED:         "qfuse.group_matmul"
// RAISED:           parts = array<i64: 192, 192>
// RAISED-NOT:       qfuse.input_scheme
// RAISED-SAME:      tensor<16x384x256xbf16>
// RAISED:         "qfuse.glu"
// RAISED:         "qfuse.group_matmul"
// RAISED:         "qfuse.combine"
// RAISED-NOT:     torch.operator
// FUSED-LABEL: func.func @plain
// FUSED-COUNT-2: "qfuse.group_matmul"
// FUSED-NOT:     "qfuse.glu"
func.func @plain(
    %rows: !torch.vtensor<[?,256],bf16>, %ids: !torch.vtensor<[?,4],si64>, %weights: !torch.vtensor<[?,4],f32>,
    %gate_up: !torch.vtensor<[16,384,256],bf16> {qfuse.name = "plain"}, %down: !torch.vtensor<[16,256,192],bf16>) -> !torch.vtensor<[?,256],bf16> {
  %silu = torch.constant.str "silu"
  %none = torch.constant.none
  %y = torch.operator "torch.qfuse.dense_experts"(%rows, %ids, %weights, %gate_up, %down, %silu, %none, %none, %none, %none) : (!torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>, !torch.vtensor<[16,384,256],bf16>, !torch.vtensor<[16,256,192],bf16>, !torch.str, !torch.none, !torch.none, !torch.none, !torch.none) -> !torch.vtensor<[?,256],bf16>
  return %y : !torch.vtensor<[?,256],bf16>
}

// Weights that are given with each call have no place to be prepared in, and a product has one type.
// RAISED-LABEL: func.func @plain_look_alikes
// RAISED-NOT:     qfuse.route
// RAISED-COUNT-2: torch.operator "torch.qfuse.dense_experts"
func.func @plain_look_alikes(
    %rows: !torch.vtensor<[?,256],bf16>, %ids: !torch.vtensor<[?,4],si64>, %weights: !torch.vtensor<[?,4],f32>,
    %given: !torch.vtensor<[16,384,256],bf16> {qfuse.name = "given", qfuse.kind = "input"}, %down: !torch.vtensor<[16,256,192],bf16>,
    %wide: !torch.vtensor<[16,384,256],bf16> {qfuse.name = "wide"}, %half: !torch.vtensor<[16,256,192],f16>) -> (!torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,256],bf16>) {
  %silu = torch.constant.str "silu"
  %none = torch.constant.none
  %y = torch.operator "torch.qfuse.dense_experts"(%rows, %ids, %weights, %given, %down, %silu, %none, %none, %none, %none) : (!torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>, !torch.vtensor<[16,384,256],bf16>, !torch.vtensor<[16,256,192],bf16>, !torch.str, !torch.none, !torch.none, !torch.none, !torch.none) -> !torch.vtensor<[?,256],bf16>
  %z = torch.operator "torch.qfuse.dense_experts"(%rows, %ids, %weights, %wide, %half, %silu, %none, %none, %none, %none) : (!torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,4],si64>, !torch.vtensor<[?,4],f32>, !torch.vtensor<[16,384,256],bf16>, !torch.vtensor<[16,256,192],f16>, !torch.str, !torch.none, !torch.none, !torch.none, !torch.none) -> !torch.vtensor<[?,256],bf16>
  return %y, %z : !torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,256],bf16>
}
