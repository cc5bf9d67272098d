// RUN: qfuse-translate --to=ttir --target=cuda:sm_90 --m 1000 %s | filecheck %s

// Three groups of 20 experts in four of 32 places; one warp for each token.

// CHECK:       // kernel select_experts_0 for cuda:sm_90, M >= 1: select_experts_0, grid (ceil(M / 1) * 1, 1), 1 warps
// CHECK:       ^bb0(%[[LOGITS:.+]]: !tt.ptr<bf16>, %[[BIAS:.+]]: !tt.ptr<f32>, %[[IDS:.+]]: !tt.ptr<i64>, %[[WEIGHTS:.+]]: !tt.ptr<bf16>, %{{.+}}: i32):
// CHECK:         %[[PLACE:.+]] = "tt.make_range"() {end = 128 : i32, start = 0 : i32}
// CHECK:         %[[THERE:.+]] = arith.andi %{{.+}}, %{{.+}} : tensor<128xi1>

// Nothing is read where there is no expert.
// CHECK:         "tt.load"(%{{.+}}, %[[THERE]], {{.*}} -> tensor<128xbf16>
// CHECK:         math.exp
// CHECK-NEXT:    arith.addf
// CHECK-NEXT:    %[[SCORE:.+]] = "tt.precise_divf"
// CHECK:         %[[B:.+]] = "tt.load"(%{{.+}}, %[[THERE]], {{.*}} -> tensor<128xf32>
// CHECK-NEXT:    %[[CHOICE:.+]] = arith.addf %[[SCORE]], %[[B]]

// Keys order like the choices, NaN above all; places of no expert are below.
// CHECK:         %[[BITS:.+]] = "tt.bitcast"(%[[CHOICE]])
// CHECK-NEXT:    %[[SIGN:.+]] = arith.shrsi %[[BITS]]
// CHECK-NEXT:    %[[FLIP:.+]] = arith.andi %[[SIGN]]
// CHECK-NEXT:    %[[ORDERED:.+]] = arith.xori %[[BITS]], %[[FLIP]]
// CHECK-NEXT:    %[[NAN:.+]] = arith.cmpf uno, %[[CHOICE]], %[[CHOICE]]
// CHECK-NEXT:    %[[NUMBER:.+]] = arith.select %[[NAN]], %{{.+}}, %[[ORDERED]]
// CHECK-NEXT:    %[[KEY:.+]] = arith.select %[[THERE]], %[[NUMBER]]

// The two largest of each group; the two groups with the largest sums.
// CHECK:         %[[GROUPED:.+]] = "tt.reshape"(%[[KEY]]) : (tensor<128xi32>) -> tensor<4x32xi32>
// CHECK:         %[[FIRST:.+]] = "tt.reduce"(%[[GROUPED]])
// CHECK:         %[[SECOND:.+]] = "tt.reduce"({{.*}}
// CHECK:         arith.addf %{{.+}}, %{{.+}} : tensor<4xf32>
// CHECK:         scf.for %{{.+}} = %c0_i32 to %c2_i32 step %c1_i32 iter_args({{.*}}) -> (tensor<4xi32>)
// CHECK:         %[[KEPT:.+]] = "tt.reshape"({{.*}}) : (tensor<4x32xi32>) -> tensor<128xi32>
// CHECK:         %[[FROM:.+]] = arith.select %[[THERE]], %[[KEPT]]

// Four times: the largest, the first place that has it, the expert there and its score.
// CHECK:         scf.for %{{.+}} = %c0_i32 to %c4_i32 step %c1_i32 iter_args(%[[KEYS:.+]] = %[[FROM]],
// CHECK:           "tt.reduce"(%[[KEYS]])
// CHECK:             arith.maxsi
// CHECK:           %[[AT:.+]] = "tt.reduce"
// CHECK:             arith.minsi
// CHECK:           %[[SPLAT:.+]] = "tt.splat"(%[[AT]])
// CHECK:           %[[TAKEN:.+]] = arith.cmpi eq, %[[PLACE]], %[[SPLAT]]
// CHECK:           arith.select %[[TAKEN]], %{{.+}}, %[[KEYS]]
// CHECK:         arith.addf %{{.+}}, %{{.+}} : f32
// CHECK:         "tt.precise_divf"
// CHECK-NEXT:    arith.mulf
// CHECK:         "tt.store"({{.*}} : (tensor<4x!tt.ptr<i64>>, tensor<4xi64>) -> ()
// CHECK:         "tt.store"({{.*}} : (tensor<4x!tt.ptr<bf16>>, tensor<4xbf16>) -> ()
func.func @main(%logits: tensor<?x60xbf16>, %bias: tensor<60xf32>) -> (tensor<?x4xi64>, tensor<?x4xbf16>) {
  %ids, %weights = "qfuse.select_experts"(%logits, %bias) {scoring = "sigmoid", normalize = true, scale = 2.5 : f64, num_groups = 3 : i64, groups_used = 2 : i64} : (tensor<?x60xbf16>, tensor<60xf32>) -> (tensor<?x4xi64>, tensor<?x4xbf16>)
  return %ids, %weights : tensor<?x4xi64>, tensor<?x4xbf16>
}
