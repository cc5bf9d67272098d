// Experts of other schemes than FP8 in blocks, down in another than gate and up.
// RUN: qfuse-opt %s --split-input-file --qfuse-raise-torch --qfuse-expand-quantize --remarks 2>%t.remarks | filecheck %s
// RUN: filecheck %s --check-prefix=REMARK < %t.remarks

// As in a file of Q4_K_M: gate and up Q4_K, down Q6_K, inputs q8_1.
// CHECK-LABEL: func.func @q4_k_m
// CHECK-DAG:     %[[WIDE:.+]] = "qfuse.pack"({{.*}}) : (tensor<4x512x128xi8>, tensor<4x512x16xi8>) -> !qfuse.qtensor<tensor<4x512x256xi4>, #qfuse.scheme<{{.*}}"q4_k"
// CHECK-DAG:     %[[NARROW:.+]] = "qfuse.pack"({{.*}}) : (tensor<4x256x192xi8>, tensor<4x256x18xi8>) -> !qfuse.qtensor<tensor<4x256x256xi6>, #qfuse.scheme<{{.*}}"q6_k"
// CHECK:         %[[X:.+]] = "qfuse.quantize"({{.*}}) : (tensor<?x256xbf16>) -> !qfuse.qtensor<tensor<?x256xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1"
// CHECK:         %[[GU:.+]]:2 = "qfuse.group_matmul"(%[[X]], %[[WIDE]],
// CHECK:         "qfuse.glu"(%[[GU]]#0, %[[GU]]#1)
// CHECK:         %[[H:.+]] = "qfuse.quantize"({{.*}}) : (tensor<?x2x256xbf16>) -> !qfuse.qtensor<tensor<?x2x256xi8>, #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1"
// CHECK:         "qfuse.group_matmul"(%[[H]], %[[NARROW]],
// REMARK:      moe-experts: fired
func.func @q4_k_m(
    %x: !torch.vtensor<[?,256],bf16>, %ids: !torch.vtensor<[?,2],si64>, %weights: !torch.vtensor<[?,2],f32>,
    %gate_up: !torch.vtensor<[4,512,128],si8>, %gate_up_scale: !torch.vtensor<[4,512,16],si8>,
    %down: !torch.vtensor<[4,256,192],si8>, %down_scale: !torch.vtensor<[4,256,18],si8>) -> !torch.vtensor<[?,256],bf16> {
  %one = torch.constant.int 1
  %inner = torch.constant.int 256
  %super = torch.constant.int 256
  %group = torch.constant.int 32
  %silu = torch.constant.str "silu"
  %none = torch.constant.none
  %wblock = torch.prim.ListConstruct %one, %super : (!torch.int, !torch.int) -> !torch.list<int>
  %xblock = torch.prim.ListConstruct %one, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %wide = torch.constant.str "q4_k"
  %narrow = torch.constant.str "q6_k"
  %format = torch.constant.str "q8_1"
  %y = torch.operator "torch.qfuse.moe_experts"(%x, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %wblock, %xblock, %silu, %none, %none, %none, %none, %wide, %format, %none, %none, %asbefore, %asbefore, %narrow, %none, %none) : (!torch.vtensor<[?,256],bf16>, !torch.vtensor<[?,2],si64>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,512,128],si8>, !torch.vtensor<[4,512,16],si8>, !torch.vtensor<[4,256,192],si8>, !torch.vtensor<[4,256,18],si8>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none, !torch.none, !torch.none, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,256],bf16>
  return %y : !torch.vtensor<[?,256],bf16>
}

// -----

// INT4 with zero points for gate and up alone; inputs per token, of two widths.
// CHECK-LABEL: func.func @int4_and_int8
// CHECK-DAG:     "qfuse.pack"({{.*}}) : (tensor<4x256x64xi8>, tensor<4x256x4xbf16>, tensor<4x256x4xi8>) -> !qfuse.qtensor<tensor<4x256x128xi4>
// CHECK-DAG:     "qfuse.pack"({{.*}}) : (tensor<4x128x128xi8>, tensor<4x128x1xf32>) -> !qfuse.qtensor<tensor<4x128x128xi8>
// CHECK:         "qfuse.quantize"({{.*}}) : (tensor<?x128xbf16>) -> !qfuse.qtensor<tensor<?x128xi8>, #qfuse.scheme<array<i64: 1, 128>, f32
// CHECK:         "qfuse.group_matmul"
// CHECK:         "qfuse.quantize"({{.*}}) : (tensor<?x2x128xbf16>) -> !qfuse.qtensor<tensor<?x2x128xi8>, #qfuse.scheme<array<i64: 1, 64>, f32
// CHECK:         "qfuse.group_matmul"
func.func @int4_and_int8(
    %x: !torch.vtensor<[?,128],bf16>, %ids: !torch.vtensor<[?,2],si64>, %weights: !torch.vtensor<[?,2],f32>,
    %gate_up: !torch.vtensor<[4,256,64],si8>, %gate_up_scale: !torch.vtensor<[4,256,4],bf16>, %zero: !torch.vtensor<[4,256,4],si8>,
    %down: !torch.vtensor<[4,128,128],si8>, %down_scale: !torch.vtensor<[4,128,1],f32>) -> !torch.vtensor<[?,128],bf16> {
  %one = torch.constant.int 1
  %inner = torch.constant.int 128
  %group = torch.constant.int 32
  %half = torch.constant.int 64
  %silu = torch.constant.str "silu"
  %none = torch.constant.none
  %wblock = torch.prim.ListConstruct %one, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %whole = torch.prim.ListConstruct %one, %inner : (!torch.int, !torch.int) -> !torch.list<int>
  %halves = torch.prim.ListConstruct %one, %half : (!torch.int, !torch.int) -> !torch.list<int>
  %wide = torch.constant.str "int4"
  %narrow = torch.constant.str "none"
  %format = torch.constant.str "dynamic"
  %y = torch.operator "torch.qfuse.moe_experts"(%x, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %wblock, %whole, %silu, %none, %none, %none, %none, %wide, %format, %zero, %none, %whole, %halves, %narrow, %none, %none) : (!torch.vtensor<[?,128],bf16>, !torch.vtensor<[?,2],si64>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,256,64],si8>, !torch.vtensor<[4,256,4],bf16>, !torch.vtensor<[4,128,128],si8>, !torch.vtensor<[4,128,1],f32>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none, !torch.none, !torch.none, !torch.str, !torch.str, !torch.vtensor<[4,256,4],si8>, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,128],bf16>
  return %y : !torch.vtensor<[?,128],bf16>
}

// -----

// One static scale for the input of gate and up, and one for that of down, whichever the expert.
// CHECK-LABEL: func.func @static
// CHECK-SAME:    %[[S:[^:]+]]: !torch.vtensor<[1],f32>, %[[T:[^:]+]]: !torch.vtensor<[1],f32>) ->
// CHECK-DAG:     %[[SB:.+]] = torch_c.to_builtin_tensor %[[S]]
// CHECK-DAG:     %[[TB:.+]] = torch_c.to_builtin_tensor %[[T]]
// CHECK:         %[[Q:.+]] = "qfuse.quantize"(%{{[^,]+}}, %[[SB]]) : (tensor<?x128xbf16>, tensor<1xf32>) -> !qfuse.qtensor<tensor<?x128xf8E4M3FN>
// CHECK:         "qfuse.group_matmul"(%[[Q]]
// CHECK:         %[[HQ:.+]] = "qfuse.quantize"(%{{[^,]+}}, %[[TB]]) : (tensor<?x2x128xbf16>, tensor<1xf32>)
// CHECK:         "qfuse.group_matmul"(%[[HQ]]
// REMARK:      moe-experts: fired
func.func @static(
    %x: !torch.vtensor<[?,128],bf16>, %ids: !torch.vtensor<[?,2],si64>, %weights: !torch.vtensor<[?,2],f32>,
    %gate_up: !torch.vtensor<[4,256,128],f8E4M3FN>, %gate_up_scale: !torch.vtensor<[4,256,1],f32>,
    %down: !torch.vtensor<[4,128,128],f8E4M3FN>, %down_scale: !torch.vtensor<[4,128,1],f32>,
    %s: !torch.vtensor<[1],f32>, %t: !torch.vtensor<[1],f32>) -> !torch.vtensor<[?,128],bf16> {
  %one = torch.constant.int 1
  %inner = torch.constant.int 128
  %silu = torch.constant.str "silu"
  %none = torch.constant.none
  %whole = torch.prim.ListConstruct %one, %inner : (!torch.int, !torch.int) -> !torch.list<int>
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %packing = torch.constant.str "none"
  %format = torch.constant.str "static"
  %same = torch.constant.str ""
  %y = torch.operator "torch.qfuse.moe_experts"(%x, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %whole, %whole, %silu, %none, %none, %none, %none, %packing, %format, %none, %none, %asbefore, %asbefore, %same, %s, %t) : (!torch.vtensor<[?,128],bf16>, !torch.vtensor<[?,2],si64>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,256,128],f8E4M3FN>, !torch.vtensor<[4,256,1],f32>, !torch.vtensor<[4,128,128],f8E4M3FN>, !torch.vtensor<[4,128,1],f32>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none, !torch.none, !torch.none, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.vtensor<[1],f32>, !torch.vtensor<[1],f32>) -> !torch.vtensor<[?,128],bf16>
  return %y : !torch.vtensor<[?,128],bf16>
}

// -----

// A static scale that is missing.
// CHECK-LABEL: func.func @static_without_scales
// CHECK:         torch.operator "torch.qfuse.moe_experts"
// REMARK:      moe-experts: refused at {{.*}}gate_up_input_scale is !torch.none; give a tensor<1xf32>
func.func @static_without_scales(
    %x: !torch.vtensor<[?,128],bf16>, %ids: !torch.vtensor<[?,2],si64>, %weights: !torch.vtensor<[?,2],f32>,
    %gate_up: !torch.vtensor<[4,256,128],f8E4M3FN>, %gate_up_scale: !torch.vtensor<[4,256,1],f32>,
    %down: !torch.vtensor<[4,128,128],f8E4M3FN>, %down_scale: !torch.vtensor<[4,128,1],f32>) -> !torch.vtensor<[?,128],bf16> {
  %one = torch.constant.int 1
  %inner = torch.constant.int 128
  %silu = torch.constant.str "silu"
  %none = torch.constant.none
  %whole = torch.prim.ListConstruct %one, %inner : (!torch.int, !torch.int) -> !torch.list<int>
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %packing = torch.constant.str "none"
  %format = torch.constant.str "static"
  %same = torch.constant.str ""
  %y = torch.operator "torch.qfuse.moe_experts"(%x, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %whole, %whole, %silu, %none, %none, %none, %none, %packing, %format, %none, %none, %asbefore, %asbefore, %same, %none, %none) : (!torch.vtensor<[?,128],bf16>, !torch.vtensor<[?,2],si64>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,256,128],f8E4M3FN>, !torch.vtensor<[4,256,1],f32>, !torch.vtensor<[4,128,128],f8E4M3FN>, !torch.vtensor<[4,128,1],f32>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none, !torch.none, !torch.none, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,128],bf16>
  return %y : !torch.vtensor<[?,128],bf16>
}

// -----

// Groups of the input that lie across those of the weight.
// CHECK-LABEL: func.func @groups_across
// CHECK:         torch.operator "torch.qfuse.moe_experts"
// REMARK:      moe-experts: refused at {{.*}}the input of gate_up is to be scaled in blocks of [1, 48], the weight in groups of 32; one must divide the other
func.func @groups_across(
    %x: !torch.vtensor<[?,128],bf16>, %ids: !torch.vtensor<[?,2],si64>, %weights: !torch.vtensor<[?,2],f32>,
    %gate_up: !torch.vtensor<[4,256,64],si8>, %gate_up_scale: !torch.vtensor<[4,256,4],bf16>,
    %down: !torch.vtensor<[4,128,64],si8>, %down_scale: !torch.vtensor<[4,128,4],bf16>) -> !torch.vtensor<[?,128],bf16> {
  %one = torch.constant.int 1
  %inner = torch.constant.int 128
  %group = torch.constant.int 32
  %odd = torch.constant.int 48
  %silu = torch.constant.str "silu"
  %none = torch.constant.none
  %wblock = torch.prim.ListConstruct %one, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %xblock = torch.prim.ListConstruct %one, %odd : (!torch.int, !torch.int) -> !torch.list<int>
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %packing = torch.constant.str "int4"
  %format = torch.constant.str "dynamic"
  %same = torch.constant.str ""
  %y = torch.operator "torch.qfuse.moe_experts"(%x, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %wblock, %xblock, %silu, %none, %none, %none, %none, %packing, %format, %none, %none, %asbefore, %asbefore, %same, %none, %none) : (!torch.vtensor<[?,128],bf16>, !torch.vtensor<[?,2],si64>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,256,64],si8>, !torch.vtensor<[4,256,4],bf16>, !torch.vtensor<[4,128,64],si8>, !torch.vtensor<[4,128,4],bf16>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none, !torch.none, !torch.none, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,128],bf16>
  return %y : !torch.vtensor<[?,128],bf16>
}

// -----

// gpt-oss: two codes a byte, and as many biases as codes.
// CHECK-LABEL: func.func @biases_of_packed_codes
// CHECK:         "qfuse.group_matmul"
// CHECK:         maps = ["[E,N]", "[E,N]"]
// CHECK:         "qfuse.group_matmul"
// CHECK:         maps = ["[E,N]"]
// CHECK-NOT:     torch.operator
func.func @biases_of_packed_codes(
    %x: !torch.vtensor<[?,128],bf16>, %ids: !torch.vtensor<[?,2],si64>, %weights: !torch.vtensor<[?,2],f32>,
    %gate_up: !torch.vtensor<[4,256,64],si8>, %gate_up_scale: !torch.vtensor<[4,256,4],f8E8M0FNU>,
    %down: !torch.vtensor<[4,128,64],si8>, %down_scale: !torch.vtensor<[4,128,4],f8E8M0FNU>,
    %gate_up_bias: !torch.vtensor<[4,256],bf16>, %down_bias: !torch.vtensor<[4,128],bf16>) -> !torch.vtensor<[?,128],bf16> {
  %one = torch.constant.int 1
  %inner = torch.constant.int 128
  %group = torch.constant.int 32
  %act = torch.constant.str "swiglu_oai"
  %limit = torch.constant.float 7.0
  %alpha = torch.constant.float 1.5
  %none = torch.constant.none
  %wblock = torch.prim.ListConstruct %one, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %packing = torch.constant.str "fp4"
  %format = torch.constant.str "dynamic"
  %same = torch.constant.str ""
  %y = torch.operator "torch.qfuse.moe_experts"(%x, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %wblock, %asbefore, %act, %limit, %alpha, %gate_up_bias, %down_bias, %packing, %format, %none, %none, %asbefore, %asbefore, %same, %none, %none) : (!torch.vtensor<[?,128],bf16>, !torch.vtensor<[?,2],si64>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,256,64],si8>, !torch.vtensor<[4,256,4],f8E8M0FNU>, !torch.vtensor<[4,128,64],si8>, !torch.vtensor<[4,128,4],f8E8M0FNU>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.float, !torch.float, !torch.vtensor<[4,256],bf16>, !torch.vtensor<[4,128],bf16>, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,128],bf16>
  return %y : !torch.vtensor<[?,128],bf16>
}

// -----

// As many biases as bytes are too few.
// CHECK-LABEL: func.func @biases_of_bytes
// REMARK:      moe-experts: refused at {{.*}}gate_up_bias is tensor<4x128xbf16>; use tensor<4x256xbf16>
// CHECK:         torch.operator
func.func @biases_of_bytes(
    %x: !torch.vtensor<[?,128],bf16>, %ids: !torch.vtensor<[?,2],si64>, %weights: !torch.vtensor<[?,2],f32>,
    %gate_up: !torch.vtensor<[4,256,64],si8>, %gate_up_scale: !torch.vtensor<[4,256,4],f8E8M0FNU>,
    %down: !torch.vtensor<[4,128,64],si8>, %down_scale: !torch.vtensor<[4,128,4],f8E8M0FNU>,
    %gate_up_bias: !torch.vtensor<[4,128],bf16>, %down_bias: !torch.vtensor<[4,128],bf16>) -> !torch.vtensor<[?,128],bf16> {
  %one = torch.constant.int 1
  %inner = torch.constant.int 128
  %group = torch.constant.int 32
  %act = torch.constant.str "swiglu_oai"
  %limit = torch.constant.float 7.0
  %alpha = torch.constant.float 1.5
  %none = torch.constant.none
  %wblock = torch.prim.ListConstruct %one, %group : (!torch.int, !torch.int) -> !torch.list<int>
  %asbefore = torch.prim.ListConstruct : () -> !torch.list<int>
  %packing = torch.constant.str "fp4"
  %format = torch.constant.str "dynamic"
  %same = torch.constant.str ""
  %y = torch.operator "torch.qfuse.moe_experts"(%x, %ids, %weights, %gate_up, %gate_up_scale, %down, %down_scale, %inner, %wblock, %asbefore, %act, %limit, %alpha, %gate_up_bias, %down_bias, %packing, %format, %none, %none, %asbefore, %asbefore, %same, %none, %none) : (!torch.vtensor<[?,128],bf16>, !torch.vtensor<[?,2],si64>, !torch.vtensor<[?,2],f32>, !torch.vtensor<[4,256,64],si8>, !torch.vtensor<[4,256,4],f8E8M0FNU>, !torch.vtensor<[4,128,64],si8>, !torch.vtensor<[4,128,4],f8E8M0FNU>, !torch.int, !torch.list<int>, !torch.list<int>, !torch.str, !torch.float, !torch.float, !torch.vtensor<[4,128],bf16>, !torch.vtensor<[4,128],bf16>, !torch.str, !torch.str, !torch.none, !torch.none, !torch.list<int>, !torch.list<int>, !torch.str, !torch.none, !torch.none) -> !torch.vtensor<[?,128],bf16>
  return %y : !torch.vtensor<[?,128],bf16>
}
