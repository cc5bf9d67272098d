// RUN: qfuse-opt %s | qfuse-opt | filecheck %s

// Every operation of the subset of Triton's dialect survives being printed and read again.

// CHECK-LABEL: "tt.func"() ({
// CHECK-NEXT:  ^bb0(%[[X:.+]]: !tt.ptr<bf16>, %[[Q:.+]]: !tt.ptr<f8E4M3FN>, %[[M:.+]]: i32):
"tt.func"() ({
^bb0(%x: !tt.ptr<bf16>, %q: !tt.ptr<f8E4M3FN>, %m: i32):
  // CHECK: %[[PID:.+]] = "tt.get_program_id"() {axis = 0 : i32} : () -> i32
  %pid = "tt.get_program_id"() {axis = 0 : i32} : () -> i32
  // CHECK-NEXT: "tt.get_num_programs"() {axis = 0 : i32} : () -> i32
  %count = "tt.get_num_programs"() {axis = 0 : i32} : () -> i32
  // CHECK-NEXT: %[[R:.+]] = "tt.make_range"() {end = 64 : i32, start = 0 : i32} : () -> tensor<64xi32>
  %r = "tt.make_range"() {start = 0 : i32, end = 64 : i32} : () -> tensor<64xi32>
  // CHECK-NEXT: "tt.splat"(%[[M]]) : (i32) -> tensor<64xi32>
  %ms = "tt.splat"(%m) : (i32) -> tensor<64xi32>
  %mask = arith.cmpi slt, %r, %ms : tensor<64xi32>
  // CHECK: "tt.splat"(%[[X]]) : (!tt.ptr<bf16>) -> tensor<64x!tt.ptr<bf16>>
  %xs = "tt.splat"(%x) : (!tt.ptr<bf16>) -> tensor<64x!tt.ptr<bf16>>
  // CHECK-NEXT: "tt.addptr"(%{{.+}}, %[[R]]) : (tensor<64x!tt.ptr<bf16>>, tensor<64xi32>) -> tensor<64x!tt.ptr<bf16>>
  %at = "tt.addptr"(%xs, %r) : (tensor<64x!tt.ptr<bf16>>, tensor<64xi32>) -> tensor<64x!tt.ptr<bf16>>
  %zero = arith.constant dense<0.0> : tensor<64xbf16>
  // CHECK: "tt.load"(%{{.+}}, %{{.+}}, %{{.+}}) {boundaryCheck = array<i32>, cache = 1 : i32, evict = 1 : i32, isVolatile = false, operandSegmentSizes = array<i32: 1, 1, 1>} : (tensor<64x!tt.ptr<bf16>>, tensor<64xi1>, tensor<64xbf16>) -> tensor<64xbf16>
  %v = "tt.load"(%at, %mask, %zero) {boundaryCheck = array<i32>, cache = 1 : i32, evict = 1 : i32, isVolatile = false, operandSegmentSizes = array<i32: 1, 1, 1>} : (tensor<64x!tt.ptr<bf16>>, tensor<64xi1>, tensor<64xbf16>) -> tensor<64xbf16>
  // CHECK-NEXT: "tt.load"(%[[X]]) {boundaryCheck = array<i32>, cache = 1 : i32, evict = 1 : i32, isVolatile = false, operandSegmentSizes = array<i32: 1, 0, 0>} : (!tt.ptr<bf16>) -> bf16
  %s = "tt.load"(%x) {boundaryCheck = array<i32>, cache = 1 : i32, evict = 1 : i32, isVolatile = false, operandSegmentSizes = array<i32: 1, 0, 0>} : (!tt.ptr<bf16>) -> bf16
  // CHECK-NEXT: "tt.expand_dims"(%{{.+}}) {axis = 1 : i32} : (tensor<64xbf16>) -> tensor<64x1xbf16>
  %column = "tt.expand_dims"(%v) {axis = 1 : i32} : (tensor<64xbf16>) -> tensor<64x1xbf16>
  // CHECK-NEXT: "tt.broadcast"(%{{.+}}) : (tensor<64x1xbf16>) -> tensor<64x32xbf16>
  %a = "tt.broadcast"(%column) : (tensor<64x1xbf16>) -> tensor<64x32xbf16>
  // CHECK-NEXT: "tt.trans"(%{{.+}}) {order = array<i32: 1, 0>} : (tensor<64x32xbf16>) -> tensor<32x64xbf16>
  %b = "tt.trans"(%a) {order = array<i32: 1, 0>} : (tensor<64x32xbf16>) -> tensor<32x64xbf16>
  %c = arith.constant dense<0.0> : tensor<64x64xf32>
  // CHECK: "tt.dot"(%{{.+}}, %{{.+}}, %{{.+}}) {inputPrecision = 0 : i32, maxNumImpreciseAcc = 0 : i32} : (tensor<64x32xbf16>, tensor<32x64xbf16>, tensor<64x64xf32>) -> tensor<64x64xf32>
  %d = "tt.dot"(%a, %b, %c) {inputPrecision = 0 : i32, maxNumImpreciseAcc = 0 : i32} : (tensor<64x32xbf16>, tensor<32x64xbf16>, tensor<64x64xf32>) -> tensor<64x64xf32>
  // CHECK-NEXT: "tt.reshape"(%{{.+}}) : (tensor<64x64xf32>) -> tensor<64x2x32xf32>
  %g = "tt.reshape"(%d) : (tensor<64x64xf32>) -> tensor<64x2x32xf32>
  // CHECK-NEXT: "tt.reduce"(%{{.+}}) ({
  // CHECK-NEXT: ^bb0(%[[A:.+]]: f32, %[[B:.+]]: f32):
  // CHECK-NEXT:   %[[MAX:.+]] = arith.maximumf %[[A]], %[[B]] : f32
  // CHECK-NEXT:   "tt.reduce_return"(%[[MAX]]) : (f32) -> ()
  // CHECK-NEXT: }) {axis = 2 : i32} : (tensor<64x2x32xf32>) -> tensor<64x2xf32>
  %max = "tt.reduce"(%g) ({
  ^bb0(%lhs: f32, %rhs: f32):
    %0 = arith.maximumf %lhs, %rhs : f32
    "tt.reduce_return"(%0) : (f32) -> ()
  }) {axis = 2 : i32} : (tensor<64x2x32xf32>) -> tensor<64x2xf32>
  // CHECK-NEXT: "tt.scan"(%[[R]]) ({
  // CHECK-NEXT: ^bb0(%[[A:.+]]: i32, %[[B:.+]]: i32):
  // CHECK-NEXT:   %[[SUM:.+]] = arith.addi %[[A]], %[[B]] : i32
  // CHECK-NEXT:   "tt.scan_return"(%[[SUM]]) : (i32) -> ()
  // CHECK-NEXT: }) {axis = 0 : i32, reverse = false} : (tensor<64xi32>) -> tensor<64xi32>
  %sums = "tt.scan"(%r) ({
  ^bb0(%lhs: i32, %rhs: i32):
    %0 = arith.addi %lhs, %rhs : i32
    "tt.scan_return"(%0) : (i32) -> ()
  }) {axis = 0 : i32, reverse = false} : (tensor<64xi32>) -> tensor<64xi32>
  // CHECK-NEXT: "tt.precise_divf"(%{{.+}}, %{{.+}}) : (tensor<64x2xf32>, tensor<64x2xf32>) -> tensor<64x2xf32>
  %div = "tt.precise_divf"(%max, %max) : (tensor<64x2xf32>, tensor<64x2xf32>) -> tensor<64x2xf32>
  // CHECK-NEXT: "tt.precise_sqrt"(%{{.+}}) : (tensor<64x2xf32>) -> tensor<64x2xf32>
  %root = "tt.precise_sqrt"(%div) : (tensor<64x2xf32>) -> tensor<64x2xf32>
  // CHECK-NEXT: "tt.bitcast"(%{{.+}}) : (tensor<64x2xf32>) -> tensor<64x2xi32>
  %bits = "tt.bitcast"(%root) : (tensor<64x2xf32>) -> tensor<64x2xi32>
  // CHECK-NEXT: "tt.elementwise_inline_asm"(%{{.+}}, %{{.+}}, %{{.+}}) {asm_string = "fma.rn.f32 $0, $1, $2, $3;", constraints = "=f,f,f,f", packed_element = 1 : i32, pure = true} : (tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  %fma = "tt.elementwise_inline_asm"(%d, %d, %c) {asm_string = "fma.rn.f32 $0, $1, $2, $3;", constraints = "=f,f,f,f", packed_element = 1 : i32, pure = true} : (tensor<64x64xf32>, tensor<64x64xf32>, tensor<64x64xf32>) -> tensor<64x64xf32>
  // CHECK:      %[[WIDE:.+]] = "tt.elementwise_inline_asm"(%{{.+}}) {asm_string = "prmt", constraints = "=r,=r,r", packed_element = 4 : i32, pure = true} : (tensor<64x2xi8>) -> tensor<64x2xf16>
  %bytes = arith.constant dense<1> : tensor<64x2xi8>
  %four = "tt.elementwise_inline_asm"(%bytes) {asm_string = "prmt", constraints = "=r,=r,r", packed_element = 4 : i32, pure = true} : (tensor<64x2xi8>) -> tensor<64x2xf16>
  // CHECK-NEXT: "tt.join"(%[[WIDE]], %[[WIDE]]) : (tensor<64x2xf16>, tensor<64x2xf16>) -> tensor<64x2x2xf16>
  %joined = "tt.join"(%four, %four) : (tensor<64x2xf16>, tensor<64x2xf16>) -> tensor<64x2x2xf16>
  // CHECK-NEXT: "tt.extern_elementwise"(%{{.+}}) {libname = "", libpath = "", pure = true, symbol = "__nv_tanhf"} : (tensor<64x64xf32>) -> tensor<64x64xf32>
  %tanh = "tt.extern_elementwise"(%fma) {libname = "", libpath = "", pure = true, symbol = "__nv_tanhf"} : (tensor<64x64xf32>) -> tensor<64x64xf32>
  // CHECK-NEXT: %[[CODES:.+]] = "tt.fp_to_fp"(%{{.+}}) {rounding = 1 : i32} : (tensor<64x64xf32>) -> tensor<64x64xf8E4M3FN>
  %codes = "tt.fp_to_fp"(%tanh) {rounding = 1 : i32} : (tensor<64x64xf32>) -> tensor<64x64xf8E4M3FN>
  // CHECK-NEXT: "tt.fp_to_fp"(%[[CODES]]) : (tensor<64x64xf8E4M3FN>) -> tensor<64x64xf16>
  %wide = "tt.fp_to_fp"(%codes) : (tensor<64x64xf8E4M3FN>) -> tensor<64x64xf16>
  %stride = arith.constant 64 : i64
  %one = arith.constant 1 : i64
  // CHECK: "tt.make_tensor_descriptor"(%[[Q]], %[[M]], %[[M]], %{{.+}}, %{{.+}}) {operandSegmentSizes = array<i32: 1, 2, 2>} : (!tt.ptr<f8E4M3FN>, i32, i32, i64, i64) -> !tt.tensordesc<tensor<64x64xf8E4M3FN>>
  %desc = "tt.make_tensor_descriptor"(%q, %m, %m, %stride, %one) {operandSegmentSizes = array<i32: 1, 2, 2>} : (!tt.ptr<f8E4M3FN>, i32, i32, i64, i64) -> !tt.tensordesc<tensor<64x64xf8E4M3FN>>
  // CHECK-NEXT: "tt.descriptor_load"(%{{.+}}, %[[PID]], %[[M]]) {cache = 1 : i32, evict = 1 : i32} : (!tt.tensordesc<tensor<64x64xf8E4M3FN>>, i32, i32) -> tensor<64x64xf8E4M3FN>
  %block = "tt.descriptor_load"(%desc, %pid, %m) {cache = 1 : i32, evict = 1 : i32} : (!tt.tensordesc<tensor<64x64xf8E4M3FN>>, i32, i32) -> tensor<64x64xf8E4M3FN>
  // CHECK-NEXT: "tt.descriptor_store"(%{{.+}}, %[[CODES]], %[[PID]], %[[M]]) : (!tt.tensordesc<tensor<64x64xf8E4M3FN>>, tensor<64x64xf8E4M3FN>, i32, i32) -> ()
  "tt.descriptor_store"(%desc, %codes, %pid, %m) : (!tt.tensordesc<tensor<64x64xf8E4M3FN>>, tensor<64x64xf8E4M3FN>, i32, i32) -> ()
  // CHECK-NEXT: "tt.store"(%{{.+}}, %{{.+}}, %{{.+}}) {boundaryCheck = array<i32>, cache = 1 : i32, evict = 1 : i32} : (tensor<64x!tt.ptr<bf16>>, tensor<64xbf16>, tensor<64xi1>) -> ()
  "tt.store"(%at, %v, %mask) {boundaryCheck = array<i32>, cache = 1 : i32, evict = 1 : i32} : (tensor<64x!tt.ptr<bf16>>, tensor<64xbf16>, tensor<64xi1>) -> ()
  // CHECK-NEXT: "tt.return"() : () -> ()
  "tt.return"() : () -> ()
// CHECK-NEXT: }) {arg_attrs = [{tt.divisibility = 16 : i32}, {tt.divisibility = 16 : i32}, {}], function_type = (!tt.ptr<bf16>, !tt.ptr<f8E4M3FN>, i32) -> (), sym_name = "all", sym_visibility = "public"} : () -> ()
}) {arg_attrs = [{tt.divisibility = 16 : i32}, {tt.divisibility = 16 : i32}, {}], function_type = (!tt.ptr<bf16>, !tt.ptr<f8E4M3FN>, i32) -> (), sym_name = "all", sym_visibility = "public"} : () -> ()

// CHECK-LABEL: "tt.func"() ({
"tt.func"() ({
^bb0(%counter: !tt.ptr<i32>, %n: i32):
  // CHECK: %{{.+}} = "tt.atomic_rmw"(%{{.+}}, %{{.+}}) {atomic_rmw_op = 4 : i32, scope = 1 : i32, sem = 4 : i32} : (!tt.ptr<i32>, i32) -> i32
  %before = "tt.atomic_rmw"(%counter, %n) {atomic_rmw_op = 4 : i32, scope = 1 : i32, sem = 4 : i32} : (!tt.ptr<i32>, i32) -> i32
  "tt.return"() : () -> ()
}) {arg_attrs = [{tt.divisibility = 16 : i32}, {}], function_type = (!tt.ptr<i32>, i32) -> (), sym_name = "counts", sym_visibility = "public"} : () -> ()
