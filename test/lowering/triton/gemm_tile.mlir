// RUN: env QFUSE_TILE_TABLE=%S/tiles.json %python -m qfuse.tools.qfuse_translate --to=ttir --target=cuda:sm_90 --m 100 %s | filecheck %s --check-prefix=SM90
// RUN: env QFUSE_TILE_TABLE=%S/tiles.json %python -m qfuse.tools.qfuse_translate --to=ttir --target=hip:gfx942 --m 100 %s | filecheck %s --check-prefix=HIP

// K = 300 is no multiple of 16 bytes, so TMA cannot read it: pointers and masks instead.

#act = #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">
#weight = #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">
!x = !qfuse.qtensor<tensor<?x300xf8E4M3FN>, #act>
!w = !qfuse.qtensor<tensor<130x300xf8E4M3FN>, #weight>
!y = tensor<?x130xbf16>

// SM90:       // kernel matmul_0 for cuda:sm_90, M >= 65: matmul_0_tile128x128, grid (ceil(M / 128) * 2, 1), 8 warps, 4 stages
// SM90:         scf.for
// SM90:           %[[LEFT:.+]] = arith.subi %c300_i32, %{{.+}} : i32
// SM90:           %[[LEFTS:.+]] = "tt.splat"(%[[LEFT]]) : (i32) -> tensor<1x128xi32>
// SM90:           arith.cmpi slt, %{{.+}}, %[[LEFTS]] : tensor<1x128xi32>
// SM90:           "tt.load"(%{{.+}}, %{{.+}}, %{{.+}}) {{.*}} -> tensor<128x128xf8E4M3FN>
// SM90:           "tt.dot"({{.*}} : (tensor<128x128xf8E4M3FN>, tensor<128x128xf8E4M3FN>, tensor<128x128xf32>)
// SM90-NOT:   tt.descriptor
// SM90-NOT:   warp_specialize

// Codes that the target cannot multiply become f16, 64 of K at a time; no inline assembly there.
// HIP:          scf.for
// HIP:            "tt.fp_to_fp"({{.*}} : (tensor<64x64xf8E4M3FN>) -> tensor<64x64xf16>
// HIP:            %[[D:.+]] = "tt.dot"({{.*}} : (tensor<64x64xf16>, tensor<64x128xf16>, tensor<64x128xf32>)
// HIP:            math.fma %[[D]]
// HIP-NOT:    tt.elementwise_inline_asm
func.func @main(%x: !x, %w: !w) -> !y {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 130>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, !w) -> !y
  return %0 : !y
}
