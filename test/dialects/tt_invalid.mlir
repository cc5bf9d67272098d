// RUN: qfuse-opt --split-input-file --verify-diagnostics %s

// What each verifier of the tt subset refuses, with its message.

// An extent that is no power of two.
func.func @case(%a: i32) {
  // expected-error @+1 {{tensor<48xi32> has an extent that is no power of two}}
  %0 = "tt.splat"(%a) : (i32) -> tensor<48xi32>
  return
}

// -----

// Too many elements for Triton.
func.func @case(%a: i32) {
  // expected-error @+1 {{has 2097152 elements; Triton takes at most 1048576}}
  %0 = "tt.splat"(%a) : (i32) -> tensor<2048x1024xi32>
  return
}

// -----

// A grid has three axes.
func.func @case() {
  // expected-error @+1 {{axis 3 is not 0, 1 or 2}}
  %0 = "tt.get_program_id"() {axis = 3 : i32} : () -> i32
  return
}

// -----

// A program id is i32.
func.func @case() {
  // expected-error @+1 {{result is i64; expected i32}}
  %0 = "tt.get_program_id"() {axis = 0 : i32} : () -> i64
  return
}

// -----

// The extent of a range is its length.
func.func @case() {
  // expected-error @+1 {{result is tensor<32xi32>; expected tensor<64xi32>}}
  %0 = "tt.make_range"() {start = 0 : i32, end = 64 : i32} : () -> tensor<32xi32>
  return
}

// -----

// A splat keeps the element type.
func.func @case(%a: i32) {
  // expected-error @+1 {{cannot splat i32 to tensor<64xi64>}}
  %0 = "tt.splat"(%a) : (i32) -> tensor<64xi64>
  return
}

// -----

// Only extents of one are repeated.
func.func @case(%a: tensor<2x4xf32>) {
  // expected-error @+1 {{cannot broadcast tensor<2x4xf32> to tensor<8x4xf32>}}
  %0 = "tt.broadcast"(%a) : (tensor<2x4xf32>) -> tensor<8x4xf32>
  return
}

// -----

// The new dimension is where axis says.
func.func @case(%a: tensor<4xf32>) {
  // expected-error @+1 {{result is tensor<4x1xf32>; expected tensor<1x4xf32>}}
  %0 = "tt.expand_dims"(%a) {axis = 0 : i32} : (tensor<4xf32>) -> tensor<4x1xf32>
  return
}

// -----

// An axis beyond the rank.
func.func @case(%a: tensor<4xf32>) {
  // expected-error @+1 {{axis 2 is outside of tensor<4xf32>}}
  %0 = "tt.expand_dims"(%a) {axis = 2 : i32} : (tensor<4xf32>) -> tensor<4x1xf32>
  return
}

// -----

// A reshape keeps the number of elements.
func.func @case(%a: tensor<4x4xf32>) {
  // expected-error @+1 {{cannot reshape tensor<4x4xf32> to tensor<8xf32>}}
  %0 = "tt.reshape"(%a) : (tensor<4x4xf32>) -> tensor<8xf32>
  return
}

// -----

// An order that names an axis twice.
func.func @case(%a: tensor<4x8xf32>) {
  // expected-error @+1 {{is no permutation, as array<i32>, of 2 axes}}
  %0 = "tt.trans"(%a) {order = array<i32: 1, 1>} : (tensor<4x8xf32>) -> tensor<8x4xf32>
  return
}

// -----

// A transposed result has the transposed shape.
func.func @case(%a: tensor<4x8xf32>) {
  // expected-error @+1 {{result is tensor<4x8xf32>; expected tensor<8x4xf32>}}
  %0 = "tt.trans"(%a) {order = array<i32: 1, 0>} : (tensor<4x8xf32>) -> tensor<4x8xf32>
  return
}

// -----

// Only pointers move.
func.func @case(%a: i64, %i: i32) {
  // expected-error @+1 {{pointer is i64; expected !tt.ptr or a tensor of it}}
  %0 = "tt.addptr"(%a, %i) : (i64, i32) -> i64
  return
}

// -----

// Offsets have the pointers' shape.
func.func @case(%a: tensor<4x!tt.ptr<f32>>, %i: i32) {
  // expected-error @+1 {{offset has shape [], not [4]}}
  %0 = "tt.addptr"(%a, %i) : (tensor<4x!tt.ptr<f32>>, i32) -> tensor<4x!tt.ptr<f32>>
  return
}

// -----

// Offsets count elements as i32 or i64.
func.func @case(%a: !tt.ptr<f32>, %i: i16) {
  // expected-error @+1 {{offset is i16; expected i32 or i64}}
  %0 = "tt.addptr"(%a, %i) : (!tt.ptr<f32>, i16) -> !tt.ptr<f32>
  return
}

// -----

// The inner extents of a product agree.
func.func @case(%a: tensor<16x32xbf16>, %b: tensor<16x32xbf16>, %c: tensor<16x32xf32>) {
  // expected-error @+1 {{cannot multiply tensor<16x32xbf16> by tensor<16x32xbf16>}}
  %0 = "tt.dot"(%a, %b, %c) {inputPrecision = 0 : i32, maxNumImpreciseAcc = 0 : i32} : (tensor<16x32xbf16>, tensor<16x32xbf16>, tensor<16x32xf32>) -> tensor<16x32xf32>
  return
}

// -----

// Both factors have one type.
func.func @case(%a: tensor<16x32xbf16>, %b: tensor<32x16xf16>, %c: tensor<16x16xf32>) {
  // expected-error @+1 {{multiplies bf16 by f16; use one of}}
  %0 = "tt.dot"(%a, %b, %c) {inputPrecision = 0 : i32, maxNumImpreciseAcc = 0 : i32} : (tensor<16x32xbf16>, tensor<32x16xf16>, tensor<16x16xf32>) -> tensor<16x16xf32>
  return
}

// -----

// Integers are summed as i32.
func.func @case(%a: tensor<16x32xi8>, %b: tensor<32x16xi8>, %c: tensor<16x16xf32>) {
  // expected-error @+1 {{c is tensor<16x16xf32>; expected tensor<16x16xi32>}}
  %0 = "tt.dot"(%a, %b, %c) {inputPrecision = 0 : i32, maxNumImpreciseAcc = 0 : i32} : (tensor<16x32xi8>, tensor<32x16xi8>, tensor<16x16xf32>) -> tensor<16x16xf32>
  return
}

// -----

// Without this attribute sm_90 multiplies FP8 at half its speed.
func.func @case(%a: tensor<64x128xf8E4M3FN>, %b: tensor<128x64xf8E4M3FN>, %c: tensor<64x64xf32>) {
  // expected-error @+1 {{maxNumImpreciseAcc 0 is below K = 128, which keeps FP8 off the tensor cores of sm_90}}
  %0 = "tt.dot"(%a, %b, %c) {inputPrecision = 0 : i32, maxNumImpreciseAcc = 0 : i32} : (tensor<64x128xf8E4M3FN>, tensor<128x64xf8E4M3FN>, tensor<64x64xf32>) -> tensor<64x64xf32>
  return
}

// -----

// A missing attribute.
func.func @case(%a: tensor<64x128xf8E4M3FN>, %b: tensor<128x64xf8E4M3FN>, %c: tensor<64x64xf32>) {
  // expected-error @+1 {{needs the attribute maxNumImpreciseAcc}}
  %0 = "tt.dot"(%a, %b, %c) {inputPrecision = 0 : i32} : (tensor<64x128xf8E4M3FN>, tensor<128x64xf8E4M3FN>, tensor<64x64xf32>) -> tensor<64x64xf32>
  return
}

// -----

// A reduction combines two elements.
func.func @case(%a: tensor<16x32xf32>) {
  // expected-error @+1 {{the region must be one block with two arguments of f32}}
  %0 = "tt.reduce"(%a) ({
  ^bb0(%l: f32, %r: i32):
    "tt.reduce_return"(%l) : (f32) -> ()
  }) {axis = 1 : i32} : (tensor<16x32xf32>) -> tensor<16xf32>
  return
}

// -----

// A reduction removes its axis.
func.func @case(%a: tensor<16x32xf32>) {
  // expected-error @+1 {{result is tensor<16xf32>; expected tensor<32xf32>}}
  %0 = "tt.reduce"(%a) ({
  ^bb0(%l: f32, %r: f32):
    "tt.reduce_return"(%l) : (f32) -> ()
  }) {axis = 0 : i32} : (tensor<16x32xf32>) -> tensor<16xf32>
  return
}

// -----

// A scan has its own terminator.
func.func @case(%a: tensor<16xi32>) {
  // expected-error @+1 {{the region must end with tt.scan_return}}
  %0 = "tt.scan"(%a) ({
  ^bb0(%l: i32, %r: i32):
    "tt.reduce_return"(%l) : (i32) -> ()
  }) {axis = 0 : i32, reverse = false} : (tensor<16xi32>) -> tensor<16xi32>
  return
}

// -----

// A scan has a direction.
func.func @case(%a: tensor<16xi32>) {
  // expected-error @+1 {{reverse is 0 : i32; expected true or false}}
  %0 = "tt.scan"(%a) ({
  ^bb0(%l: i32, %r: i32):
    "tt.scan_return"(%l) : (i32) -> ()
  }) {axis = 0 : i32, reverse = 0 : i32} : (tensor<16xi32>) -> tensor<16xi32>
  return
}

// -----

// A scan keeps its shape.
func.func @case(%a: tensor<16x32xi32>) {
  // expected-error @+1 {{result is tensor<16xi32>; expected tensor<16x32xi32>}}
  %0 = "tt.scan"(%a) ({
  ^bb0(%l: i32, %r: i32):
    "tt.scan_return"(%l) : (i32) -> ()
  }) {axis = 1 : i32, reverse = false} : (tensor<16x32xi32>) -> tensor<16xi32>
  return
}

// -----

// Conversions between floats only.
func.func @case(%a: tensor<16xi32>) {
  // expected-error @+1 {{source is tensor<16xi32>; expected floats}}
  %0 = "tt.fp_to_fp"(%a) {rounding = 1 : i32} : (tensor<16xi32>) -> tensor<16xf32>
  return
}

// -----

// Triton knows two roundings.
func.func @case(%a: tensor<16xf32>) {
  // expected-error @+1 {{rounding 2 is not one of}}
  %0 = "tt.fp_to_fp"(%a) {rounding = 2 : i32} : (tensor<16xf32>) -> tensor<16xbf16>
  return
}

// -----

// A conversion to a wider type has nothing to round.
func.func @case(%a: tensor<16xf8E4M3FN>) {
  // expected-error @+1 {{rounds although f32 holds every f8E4M3FN}}
  %0 = "tt.fp_to_fp"(%a) {rounding = 1 : i32} : (tensor<16xf8E4M3FN>) -> tensor<16xf32>
  return
}

// -----

// A narrower result is rounded somehow.
func.func @case(%a: tensor<16xf32>) {
  // expected-error @+1 {{needs the attribute rounding, because the result is narrower}}
  %0 = "tt.fp_to_fp"(%a) : (tensor<16xf32>) -> tensor<16xf8E4M3FN>
  return
}

// -----

// A cast keeps the bits.
func.func @case(%a: tensor<16xf32>) {
  // expected-error @+1 {{cannot cast tensor<16xf32> to tensor<16xi16>: widths differ}}
  %0 = "tt.bitcast"(%a) : (tensor<16xf32>) -> tensor<16xi16>
  return
}

// -----

// Precise division is on f32.
func.func @case(%a: tensor<16xbf16>) {
  // expected-error @+1 {{result is tensor<16xbf16>; expected f32}}
  %0 = "tt.precise_divf"(%a, %a) : (tensor<16xbf16>, tensor<16xbf16>) -> tensor<16xbf16>
  return
}

// -----

// One constraint per operand.
func.func @case(%a: tensor<16xf32>) {
  // expected-error @+1 {{constraints =f,f,f are not one result and 1 operands}}
  %0 = "tt.elementwise_inline_asm"(%a) {asm_string = "abs.f32 $0, $1;", constraints = "=f,f,f", packed_element = 1 : i32, pure = true} : (tensor<16xf32>) -> tensor<16xf32>
  return
}

// -----

// Impure assembly.
func.func @case(%a: tensor<16xf32>) {
  // expected-error @+1 {{pure is not true, which breaks warp specialization}}
  %0 = "tt.elementwise_inline_asm"(%a) {asm_string = "abs.f32 $0, $1;", constraints = "=f,f", packed_element = 1 : i32, pure = false} : (tensor<16xf32>) -> tensor<16xf32>
  return
}

// -----

// The mask has the pointers' shape.
func.func @case(%p: tensor<16x!tt.ptr<f32>>, %m: tensor<8xi1>) {
  // expected-error @+1 {{mask is tensor<8xi1>; expected tensor<16xi1>}}
  %0 = "tt.load"(%p, %m) {boundaryCheck = array<i32>, cache = 1 : i32, evict = 1 : i32, isVolatile = false, operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<16x!tt.ptr<f32>>, tensor<8xi1>) -> tensor<16xf32>
  return
}

// -----

// A value for masked elements needs a mask.
func.func @case(%p: tensor<16x!tt.ptr<f32>>, %o: tensor<16xf32>) {
  // expected-error @+1 {{has a value for masked elements but no mask}}
  %0 = "tt.load"(%p, %o) {boundaryCheck = array<i32>, cache = 1 : i32, evict = 1 : i32, isVolatile = false, operandSegmentSizes = array<i32: 1, 0, 1>} : (tensor<16x!tt.ptr<f32>>, tensor<16xf32>) -> tensor<16xf32>
  return
}

// -----

// A load yields what is pointed to.
func.func @case(%p: tensor<16x!tt.ptr<f32>>) {
  // expected-error @+1 {{result is tensor<16xbf16>; expected tensor<16xf32>}}
  %0 = "tt.load"(%p) {boundaryCheck = array<i32>, cache = 1 : i32, evict = 1 : i32, isVolatile = false, operandSegmentSizes = array<i32: 1, 0, 0>} : (tensor<16x!tt.ptr<f32>>) -> tensor<16xbf16>
  return
}

// -----

// Two optional operands need their sizes.
func.func @case(%p: tensor<16x!tt.ptr<f32>>) {
  // expected-error @+1 {{needs the attribute operandSegmentSizes}}
  %0 = "tt.load"(%p) {boundaryCheck = array<i32>, cache = 1 : i32, evict = 1 : i32, isVolatile = false} : (tensor<16x!tt.ptr<f32>>) -> tensor<16xf32>
  return
}

// -----

// A store writes what is pointed to.
func.func @case(%p: tensor<16x!tt.ptr<f32>>, %v: tensor<16xbf16>) {
  // expected-error @+1 {{value is tensor<16xbf16>; expected tensor<16xf32>}}
  "tt.store"(%p, %v) {boundaryCheck = array<i32>, cache = 1 : i32, evict = 1 : i32} : (tensor<16x!tt.ptr<f32>>, tensor<16xbf16>) -> ()
  return
}

// -----

// A descriptor has as many extents as its block.
func.func @case(%p: !tt.ptr<f32>, %m: i32, %s: i64) {
  // expected-error @+1 {{expected 1, 2, 2 for its block}}
  %0 = "tt.make_tensor_descriptor"(%p, %m, %s) {operandSegmentSizes = array<i32: 1, 1, 1>} : (!tt.ptr<f32>, i32, i64) -> !tt.tensordesc<tensor<64x64xf32>>
  return
}

// -----

// Strides are i64.
func.func @case(%p: !tt.ptr<f32>, %m: i32) {
  // expected-error @+1 {{takes 2 extents of i32 and 2 strides of i64}}
  %0 = "tt.make_tensor_descriptor"(%p, %m, %m, %m, %m) {operandSegmentSizes = array<i32: 1, 2, 2>} : (!tt.ptr<f32>, i32, i32, i32, i32) -> !tt.tensordesc<tensor<64x64xf32>>
  return
}

// -----

// A descriptor reads what its pointer points to.
func.func @case(%p: !tt.ptr<bf16>, %m: i32, %s: i64) {
  // expected-error @+1 {{base is !tt.ptr<bf16> but the block is tensor<64x64xf32>}}
  %0 = "tt.make_tensor_descriptor"(%p, %m, %m, %s, %s) {operandSegmentSizes = array<i32: 1, 2, 2>} : (!tt.ptr<bf16>, i32, i32, i64, i64) -> !tt.tensordesc<tensor<64x64xf32>>
  return
}

// -----

// An index has one value per dimension.
func.func @case(%d: !tt.tensordesc<tensor<64x64xf32>>, %i: i32) {
  // expected-error @+1 {{index is (i32); expected 2 values of i32}}
  %0 = "tt.descriptor_load"(%d, %i) {cache = 1 : i32, evict = 1 : i32} : (!tt.tensordesc<tensor<64x64xf32>>, i32) -> tensor<64x64xf32>
  return
}

// -----

// A descriptor loads its block.
func.func @case(%d: !tt.tensordesc<tensor<64x64xf32>>, %i: i32) {
  // expected-error @+1 {{result is tensor<64x32xf32>; expected tensor<64x64xf32>}}
  %0 = "tt.descriptor_load"(%d, %i, %i) {cache = 1 : i32, evict = 1 : i32} : (!tt.tensordesc<tensor<64x64xf32>>, i32, i32) -> tensor<64x32xf32>
  return
}

// -----

// A descriptor stores its block.
func.func @case(%d: !tt.tensordesc<tensor<64x64xf32>>, %i: i32, %v: tensor<64x64xbf16>) {
  // expected-error @+1 {{value is tensor<64x64xbf16>; expected tensor<64x64xf32>}}
  "tt.descriptor_store"(%d, %v, %i, %i) : (!tt.tensordesc<tensor<64x64xf32>>, tensor<64x64xbf16>, i32, i32) -> ()
  return
}

// -----

// A stride that TMA cannot take: 100 bytes.
func.func @case(%p: !tt.ptr<bf16>, %m: i32) {
  %s = arith.constant 50 : i64
  %one = arith.constant 1 : i64
  // expected-error @+1 {{a stride of 50 x bf16 is no multiple of 16 bytes}}
  %0 = "tt.make_tensor_descriptor"(%p, %m, %m, %s, %one) {operandSegmentSizes = array<i32: 1, 2, 2>} : (!tt.ptr<bf16>, i32, i32, i64, i64) -> !tt.tensordesc<tensor<64x64xbf16>>
  return
}

// -----

// Columns are contiguous.
func.func @case(%p: !tt.ptr<bf16>, %m: i32) {
  %s = arith.constant 64 : i64
  // expected-error @+1 {{the last stride is 64, not 1}}
  %0 = "tt.make_tensor_descriptor"(%p, %m, %m, %s, %s) {operandSegmentSizes = array<i32: 1, 2, 2>} : (!tt.ptr<bf16>, i32, i32, i64, i64) -> !tt.tensordesc<tensor<64x64xbf16>>
  return
}

// -----

// A kernel returns nothing.
// expected-error @+1 {{function_type is () -> i32; a kernel returns nothing}}
"tt.func"() ({
  "tt.return"() : () -> ()
}) {arg_attrs = [], function_type = () -> i32, sym_name = "k", sym_visibility = "public"} : () -> ()

// -----

// The type of a kernel is that of its arguments.
// expected-error @+1 {{has arguments (i64), but its type is (i32) -> ()}}
"tt.func"() ({
^bb0(%a: i64):
  "tt.return"() : () -> ()
}) {arg_attrs = [{}], function_type = (i32) -> (), sym_name = "k", sym_visibility = "public"} : () -> ()

// -----

// A kernel takes no tensors.
// expected-error @+1 {{argument 0 is tensor<4xf32>; expected a pointer, an integer or f32}}
"tt.func"() ({
^bb0(%a: tensor<4xf32>):
  "tt.return"() : () -> ()
}) {arg_attrs = [{}], function_type = (tensor<4xf32>) -> (), sym_name = "k", sym_visibility = "public"} : () -> ()

// -----

// Attributes for each argument.
// expected-error @+1 {{has 1 arguments but 0 arg_attrs}}
"tt.func"() ({
^bb0(%a: i32):
  "tt.return"() : () -> ()
}) {arg_attrs = [], function_type = (i32) -> (), sym_name = "k", sym_visibility = "public"} : () -> ()

// -----

// A kernel ends with tt.return.
// expected-error @+1 {{must end with tt.return}}
"tt.func"() ({
  %0 = arith.constant 1 : i32
  func.return
}) {arg_attrs = [], function_type = () -> (), sym_name = "k", sym_visibility = "public"} : () -> ()

// -----

// Sums of floats by atomics depend on the order of the programs.
func.func @case(%p: !tt.ptr<i32>, %v: i32) {
  // expected-error @+1 {{atomic_rmw_op 5 is not one of {'add': 4, 'exchange': 10}}}
  %0 = "tt.atomic_rmw"(%p, %v) {atomic_rmw_op = 5 : i32, scope = 1 : i32, sem = 4 : i32} : (!tt.ptr<i32>, i32) -> i32
  return
}

// -----

// A counter serves all programs of the GPU.
func.func @case(%p: !tt.ptr<i32>, %v: i32) {
  // expected-error @+1 {{scope 2 is not one of {'gpu': 1}}}
  %0 = "tt.atomic_rmw"(%p, %v) {atomic_rmw_op = 4 : i32, scope = 2 : i32, sem = 4 : i32} : (!tt.ptr<i32>, i32) -> i32
  return
}

// -----

// An atomic that only acquires would leave sums unpublished.
func.func @case(%p: !tt.ptr<i32>, %v: i32) {
  // expected-error @+1 {{sem 2 is not one of {'relaxed': 1, 'acquire_release': 4}}}
  %0 = "tt.atomic_rmw"(%p, %v) {atomic_rmw_op = 4 : i32, scope = 1 : i32, sem = 2 : i32} : (!tt.ptr<i32>, i32) -> i32
  return
}

// -----

// Counters are i32.
func.func @case(%p: !tt.ptr<f32>, %v: i32) {
  // expected-error @+1 {{pointer is !tt.ptr<f32>; expected !tt.ptr<i32>}}
  %0 = "tt.atomic_rmw"(%p, %v) {atomic_rmw_op = 4 : i32, scope = 1 : i32, sem = 4 : i32} : (!tt.ptr<f32>, i32) -> i32
  return
}

// -----

// What was there before has the type of what is there.
func.func @case(%p: !tt.ptr<i32>, %v: i32) {
  // expected-error @+1 {{result is i64; expected i32}}
  %0 = "tt.atomic_rmw"(%p, %v) {atomic_rmw_op = 4 : i32, scope = 1 : i32, sem = 4 : i32} : (!tt.ptr<i32>, i32) -> i64
  return
}

// -----

// Both halves of a join have one type.
func.func @case(%a: tensor<16xi8>, %b: tensor<16xi16>) {
  // expected-error @+1 {{rhs is tensor<16xi16>; expected tensor<16xi8>}}
  %0 = "tt.join"(%a, %b) : (tensor<16xi8>, tensor<16xi16>) -> tensor<16x2xi8>
  return
}

// -----

// Four elements of 16 bits take two registers.
func.func @case(%a: tensor<16xi8>) {
  // expected-error @+1 {{constraints =r,r are not 2 registers of a result and 1 operands}}
  %0 = "tt.elementwise_inline_asm"(%a) {asm_string = "x", constraints = "=r,r", packed_element = 4 : i32, pure = true} : (tensor<16xi8>) -> tensor<16xf16>
  return
}
