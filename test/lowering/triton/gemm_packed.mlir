// RUN: qfuse-translate --to=ttir --m 4096 --target=cuda:sm_90 %s | filecheck %s
// RUN: qfuse-translate --to=ttir --m 4096 --target=hip:gfx942 %s | filecheck %s --check-prefix AMD

// Weights whose codes share bytes come first, in tiles of any number of rows.  Codes become numbers
// below the leading bit of a power of two, which is subtracted when they are in their order.

#int4 = #qfuse.scheme<array<i64: 1, 128>, bf16, "int4", "int", "row_major">
#q8_1 = #qfuse.scheme<array<i64: 1, 32>, f16, "q8_1", "none", "row_major">
#q4_k = #qfuse.scheme<array<i64: 1, 256>, i8, "q4_k", "none", "row_major">
!x = tensor<?x512xbf16>
!i = !qfuse.qtensor<tensor<?x512xi8>, #q8_1>
!w4 = !qfuse.qtensor<tensor<256x512xi4>, #int4>
!wk = !qfuse.qtensor<tensor<256x512xi4>, #q4_k>
!y = tensor<?x256xbf16>

// W4A16: a zero point for each column and group of 128, subtracted with the power of two.
// CHECK:       kernel matmul_0
// CHECK:       ^bb0(%[[X:.+]]: !tt.ptr<bf16>, %[[W:.+]]: !tt.ptr<i8>, %[[S:.+]]: !tt.ptr<bf16>, %[[Z:.+]]: !tt.ptr<i8>, %{{.+}}: !tt.ptr<bf16>, %[[M:.+]]: i32):
// CHECK:         scf.for
// CHECK:           %[[BYTES:.+]] = "tt.load"({{.*}} -> tensor<[[C:[0-9]+]]x64xi8>
// CHECK:           %[[LOW:.+]] = "tt.elementwise_inline_asm"(%[[BYTES]]) {asm_string = "{ .reg .b32 a, t; prmt.b32 {{.*}} 0x43004300, 0xea; }", constraints = "=r,=r,r", packed_element = 4 : i32, pure = true} : (tensor<[[C]]x64xi8>) -> tensor<[[C]]x64xbf16>
// CHECK:           %[[HIGH:.+]] = "tt.elementwise_inline_asm"(%[[BYTES]]) {asm_string = "{ .reg .b32 a, t; shr.b32 t, $2, 4;
// CHECK:           %[[BOTH:.+]] = "tt.join"(%[[LOW]], %[[HIGH]])
// CHECK-NEXT:      %[[CODES:.+]] = "tt.reshape"(%[[BOTH]]) : (tensor<[[C]]x64x2xbf16>) -> tensor<[[C]]x128xbf16>
// CHECK-NEXT:      %[[ZERO:.+]] = arith.sitofp %{{.+}} : tensor<[[C]]x1xi8> to tensor<[[C]]x1xbf16>
// CHECK-NEXT:      %[[LESS:.+]] = arith.addf %[[ZERO]], %{{.+}}
// CHECK-NEXT:      %[[LESSES:.+]] = "tt.broadcast"(%[[LESS]])
// CHECK-NEXT:      %[[WF:.+]] = arith.subf %[[CODES]], %[[LESSES]]
// CHECK:           %[[P:.+]] = "tt.dot"(%[[WF]], %{{.+}}, %{{.+}})
// CHECK:           "tt.elementwise_inline_asm"(%[[P]],

// Without NVIDIA's assembly, the same a byte at a time.
// AMD:         kernel matmul_0
// AMD-NOT:       tt.elementwise_inline_asm
// AMD:           arith.extui %{{.+}} : tensor<[[C:[0-9]+]]x64xi8> to tensor<[[C]]x64xi16>
// AMD:           arith.ori %{{.+}}, %{{.+}} : tensor<[[C]]x64xi16>
// AMD:           "tt.join"
func.func @int4(%x: !x, %w: !w4) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w4) -> !y
  return %0 : !y
}

// W4A8: exact products in i32; codes are less 8, and the rest of the zero points meets the sums of
// the codes of x, not those that q8_1 has rounded.
// CHECK:       kernel matmul_1
// CHECK:         scf.for
// CHECK:           %[[XB:.+]] = "tt.load"({{.*}} -> tensor<[[R:[0-9]+]]x32xi8>
// CHECK:           %[[C8:.+]] = "tt.elementwise_inline_asm"(%{{.+}}) {asm_string = "{ .reg .b32 t; sub.u32 t, $1, 0x08080808; xor.b32 $0, t, 0x80808080; }"
// CHECK:           %[[P:.+]] = "tt.dot"(%[[C8]], %{{.+}}, %{{.+}}) {{.*}} -> tensor<[[C:[0-9]+]]x[[R]]xi32>
// CHECK:           %[[XW:.+]] = arith.extsi %[[XB]]
// CHECK:           "tt.reduce"(%[[XW]])
// CHECK:           %[[SZ:.+]] = arith.muli
// CHECK-NEXT:      %[[PZ:.+]] = arith.subi %[[P]], %[[SZ]]
// CHECK-NEXT:      arith.sitofp %[[PZ]]
func.func @integers(%x: !i, %w: !w4) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!i, !w4) -> !y
  return %0 : !y
}

// A quarter of a block of Q4_K: its header is four words, its bytes have the codes of two groups,
// each a product of its own, and then what the minima add for the sums of x.
// CHECK:       kernel matmul_2
// CHECK:         "tt.bitcast"(%{{.+}}) : (!tt.ptr<i8>) -> !tt.ptr<i32>
// CHECK:         scf.for
// CHECK:           "tt.load"({{.*}} -> tensor<[[R:[0-9]+]]x32xbf16>
// CHECK:           "tt.load"({{.*}} -> tensor<[[R]]x32xbf16>
// CHECK:           "tt.load"({{.*}} -> tensor<[[C:[0-9]+]]x32xi8>
// CHECK-COUNT-4:   "tt.load"({{.*}} -> tensor<[[C]]xi32>
// CHECK:           %[[P0:.+]] = "tt.dot"
// CHECK:           %[[T0:.+]] = "tt.elementwise_inline_asm"(%[[P0]],
// CHECK:           "tt.reduce"
// CHECK:           %[[T1:.+]] = "tt.elementwise_inline_asm"(%{{.+}}, %{{.+}}, %[[T0]]) {asm_string = "fma
// CHECK:           %[[P1:.+]] = "tt.dot"
// CHECK:           "tt.elementwise_inline_asm"(%[[P1]], %{{.+}}, %[[T1]])
func.func @k_quant(%x: !x, %w: !wk) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 256>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !wk) -> !y
  return %0 : !y
}
