// RUN: env QFUSE_TILE_TABLE=%S/tiles.json %python -m qfuse.tools.qfuse_translate --to=ttir --target=cuda:sm_90 --m 4096 %s | filecheck %s

// Many rows on sm_90: a loop over tiles with TMA that Triton splits into one producer and two
// consumers; two products of 128 columns each per step, because one of 256 would spill.

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = !qfuse.qtensor<tensor<?x1024xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<768x1024xf8E4M3FN>, #weight>
!y = tensor<?x768xbf16>

// CHECK:       // kernel matmul_0 for cuda:sm_90, M >= 65: matmul_0_ws128x256, grid (min(ceil(M / 128) * 3, 132), 1), 4 warps, 4 stages
// CHECK:       ^bb0(%[[X:.+]]: !tt.ptr<f8E4M3FN>, %[[XS:.+]]: !tt.ptr<f32>, %[[W:.+]]: !tt.ptr<f8E4M3FN>, %[[WS:.+]]: !tt.ptr<f32>, %[[R:.+]]: !tt.ptr<bf16>, %[[Y:.+]]: !tt.ptr<bf16>, %[[M:.+]]: i32):
// CHECK-DAG:     %[[ZERO:.+]] = arith.constant dense<0.000000e+00> : tensor<128x128xf32>
// CHECK:         %[[XD:.+]] = "tt.make_tensor_descriptor"(%[[X]], %[[M]], {{.*}} -> !tt.tensordesc<tensor<128x128xf8E4M3FN>>
// CHECK:         %[[WD:.+]] = "tt.make_tensor_descriptor"(%[[W]], {{.*}} -> !tt.tensordesc<tensor<128x128xf8E4M3FN>>
// CHECK:         %[[YD:.+]] = "tt.make_tensor_descriptor"(%[[Y]], %[[M]], {{.*}} -> !tt.tensordesc<tensor<128x128xbf16>>
// CHECK:         %[[FIRST:.+]] = "tt.get_program_id"() {axis = 0 : i32}
// CHECK:         %[[STEP:.+]] = "tt.get_num_programs"() {axis = 0 : i32}
// CHECK:         scf.for %{{.+}} = %[[FIRST]] to %{{.+}} step %[[STEP]]

// The sums, and the scales of the next step.
// CHECK:           %[[SUMS:.+]]:5 = scf.for %{{.+}} iter_args(%[[A0:.+]] = %[[ZERO]], %[[A1:.+]] = %[[ZERO]], %[[S:.+]] = %{{.+}}, %[[T0:.+]] = %{{.+}}, %[[T1:.+]] = %{{.+}}) -> (tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x1xf32>, f32, f32)

// Loads come before products: the producer issues them in this order.
// CHECK:             %[[XB:.+]] = "tt.descriptor_load"(%[[XD]]
// CHECK:             %[[W0:.+]] = "tt.descriptor_load"(%[[WD]]
// CHECK:             %[[W1:.+]] = "tt.descriptor_load"(%[[WD]]

// A product of a step starts at zero and is added in f32, as one pure instruction.
// CHECK:             %[[W0T:.+]] = "tt.trans"(%[[W0]])
// CHECK:             %[[D0:.+]] = "tt.dot"(%[[XB]], %[[W0T]], %[[ZERO]]) {inputPrecision = 0 : i32, maxNumImpreciseAcc = 1073741824 : i32}
// CHECK:             %[[T0S:.+]] = "tt.splat"(%[[T0]])
// CHECK:             %[[ST0:.+]] = arith.mulf %[[S]], %[[T0S]] : tensor<128x1xf32>
// CHECK:             %[[ST0B:.+]] = "tt.broadcast"(%[[ST0]])
// CHECK:             %[[F0:.+]] = "tt.elementwise_inline_asm"(%[[D0]], %[[ST0B]], %[[A0]]) {asm_string = "fma.rn.f32 $0, $1, $2, $3;"
// CHECK:             %[[W1T:.+]] = "tt.trans"(%[[W1]])
// CHECK:             %[[D1:.+]] = "tt.dot"(%[[XB]], %[[W1T]], %[[ZERO]])
// CHECK:             scf.yield %[[F0]], %{{.+}}, %{{.+}}, %{{.+}}, %{{.+}} :

// The epilogue of each half, on blocks; TMA stores what it yields.
// CHECK:           "tt.load"({{.*}} -> tensor<128x128xbf16>
// CHECK:           %[[V:.+]] = arith.addf %[[SUMS]]#0, %{{.+}} : tensor<128x128xf32>
// CHECK:           %[[B:.+]] = arith.truncf %[[V]] : tensor<128x128xf32> to tensor<128x128xbf16>
// CHECK:           "tt.descriptor_store"(%[[YD]], %[[B]]
// CHECK:           arith.addf %[[SUMS]]#1
// CHECK:           "tt.descriptor_store"(%[[YD]]
// CHECK:         } {tt.warp_specialize}
// CHECK:         "tt.return"() : () -> ()
// CHECK-NOT:   // kernel
func.func @main(%x: !x, %w: !w, %r: !y) -> !y {
  %0 = "qfuse.matmul"(%x, %w, %r) ({
  ^bb0(%acc: f32, %e: f32):
    %v = arith.addf %acc, %e : f32
    "qfuse.yield"(%v) : (f32) -> ()
  }) {parts = array<i64: 768>, maps = ["[M,N]"], operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w, !y) -> !y
  return %0 : !y
}
