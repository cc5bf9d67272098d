// RUN: qfuse-translate --to=ttir %s | filecheck %s

// Rotary embedding of half rows.  A row of the kernel is one head of one token, so 8 rows share
// the cos and sin of a token; products are rounded as the separate operations would round them.

!x = tensor<1x?x8x128xbf16>
!t = tensor<1x?x128xbf16>

// CHECK:       // kernel rope_0 for cuda:sm_90, M >= 1: rope_0, grid (ceil(M / [[ROWS:[0-9]+]]) * 1, 1)
// CHECK:       ^bb0(%[[X:.+]]: !tt.ptr<bf16>, %[[COS:.+]]: !tt.ptr<bf16>, %[[SIN:.+]]: !tt.ptr<bf16>, %[[Y:.+]]: !tt.ptr<bf16>, %[[M:.+]]: i32):
// CHECK-DAG:     %[[HEADS:.+]] = arith.constant dense<8> : tensor<[[ROWS]]x1xi32>
// CHECK:         %[[P:.+]] = "tt.get_program_id"() {axis = 0 : i32}

// Rows at the end: the last one is read again by those that are not there, and masked.
// CHECK:         %[[LEFT:.+]] = arith.subi %[[M]], %{{.+}} : i32
// CHECK:         arith.minsi %{{.+}}, %{{.+}} : tensor<[[ROWS]]x1xi32>
// CHECK:         %[[LEFTS:.+]] = "tt.splat"(%[[LEFT]])
// CHECK-NEXT:    %[[IN:.+]] = arith.cmpi slt, %{{.+}}, %[[LEFTS]] : tensor<[[ROWS]]x1xi32>
// CHECK-NEXT:    %[[MASK:.+]] = "tt.broadcast"(%[[IN]])
// CHECK-NEXT:    %[[LOW:.+]] = "tt.load"(%{{.+}}, %[[MASK]], %{{.+}}) {{.*}} -> tensor<[[ROWS]]x64xbf16>
// CHECK-NEXT:    %[[LOWF:.+]] = arith.extf %[[LOW]]
// CHECK:         %[[HIGH:.+]] = "tt.load"(%{{.+}}, %[[MASK]], %{{.+}})
// CHECK-NEXT:    %[[HIGHF:.+]] = arith.extf %[[HIGH]]
// CHECK:         arith.divsi %{{.+}}, %[[HEADS]] : tensor<[[ROWS]]x1xi32>

// low * cos - high * sin
// CHECK:         %[[LC:.+]] = arith.mulf %[[LOWF]], %{{.+}} : tensor<[[ROWS]]x64xf32>
// CHECK-NEXT:    %[[LCR:.+]] = arith.truncf %[[LC]] : tensor<[[ROWS]]x64xf32> to tensor<[[ROWS]]x64xbf16>
// CHECK-NEXT:    %[[LCF:.+]] = arith.extf %[[LCR]]
// CHECK:         %[[HS:.+]] = arith.mulf %[[HIGHF]], %{{.+}}
// CHECK-NEXT:    %[[HSR:.+]] = arith.truncf %[[HS]]
// CHECK-NEXT:    %[[HSF:.+]] = arith.extf %[[HSR]]
// CHECK-NEXT:    %[[FIRST:.+]] = arith.subf %[[LCF]], %[[HSF]]

// high * cos + low * sin
// CHECK:         arith.mulf %[[HIGHF]]
// CHECK:         arith.mulf %[[LOWF]]
// CHECK:         %[[SECOND:.+]] = arith.addf
// CHECK:         %[[FIRSTR:.+]] = arith.truncf %[[FIRST]]
// CHECK-NEXT:    "tt.store"(%{{.+}}, %[[FIRSTR]], %[[MASK]])
// CHECK:         %[[SECONDR:.+]] = arith.truncf %[[SECOND]]
// CHECK-NEXT:    "tt.store"(%{{.+}}, %[[SECONDR]], %[[MASK]])
// CHECK-NOT:     "tt.store"
func.func @main(%x: !x, %cos: !t, %sin: !t) -> !x {
  %0 = "qfuse.rope"(%x, %cos, %sin) : (!x, !t, !t) -> !x
  return %0 : !x
}
