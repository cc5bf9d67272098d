// RUN: qfuse-opt %s --qfuse-fuse-epilogue --canonicalize | filecheck %s
// RUN: qfuse-opt --pass-pipeline='builtin.module(qfuse-fuse-epilogue{stages=activation},func.func(cse),canonicalize)' %s | filecheck %s
// RUN: cat %s | qfuse-opt - --qfuse-fuse-epilogue | filecheck %s
// RUN: qfuse-opt %s --qfuse-fuse-epilogue -o %t.out.mlir && filecheck %s < %t.out.mlir
// CHECK-LABEL: func.func @main
// CHECK:         math.exp
// CHECK-NOT:     "qfuse.silu"

// Flags run in order: what the first pass fused is not there for the second.
// RUN: qfuse-opt %s --canonicalize --qfuse-fuse-epilogue --print-ir-after-all 2>&1 >/dev/null | filecheck %s --check-prefix AFTER
// AFTER: // IR after canonicalize
// AFTER: "qfuse.silu"
// AFTER: // IR after qfuse-fuse-epilogue
// AFTER-NOT: "qfuse.silu"

// RUN: rm -rf %t.dump && qfuse-opt %s --cse --qfuse-fuse-epilogue --dump-dir %t.dump >/dev/null && ls %t.dump | filecheck %s --check-prefix DUMP
// DUMP: 00-cse.mlir
// DUMP: 01-qfuse-fuse-epilogue.mlir

// RUN: qfuse-opt %s --qfuse-fuse-epilogue --remarks 2>&1 >/dev/null | filecheck %s --check-prefix TEXT
// RUN: qfuse-opt --qfuse-fuse-epilogue --remarks %s 2>&1 >/dev/null | filecheck %s --check-prefix TEXT
// TEXT: driver.mlir:{{[0-9]+:[0-9]+}}: remark: epilogue-activation: fired at qfuse.silu: saves 1 launch, 32 B a row
// RUN: qfuse-opt %s --qfuse-fuse-epilogue --remarks=json 2>&1 >/dev/null | %python -c "import json,sys; r = json.load(sys.stdin); assert r[0]['outcome'] == 'fired' and r[0]['pattern'] == 'epilogue-activation' and r[0]['saves'] == {'launches': 1, 'bytes': 0, 'bytes_per_row': 32}, r"

// RUN: qfuse-opt %s --qfuse-fuse-epilogue --timing 2>&1 >/dev/null | filecheck %s --check-prefix TIME
// TIME: ms  qfuse-fuse-epilogue
// TIME: ms  total

// The reproducer is a test of its own: its first line is how it is run.
// RUN: qfuse-opt %s --cse --qfuse-fuse-epilogue=stages=activation --reproducer %t.repro.mlir >/dev/null
// RUN: head -1 %t.repro.mlir | filecheck %s --check-prefix REPRO
// REPRO: // RUN: qfuse-opt --pass-pipeline='builtin.module(cse,qfuse-fuse-epilogue{stages=activation})' %s
// RUN: qfuse-opt %t.repro.mlir --qfuse-fuse-epilogue | filecheck %s

!x = tensor<?x8xbf16>
func.func @main(%x: !x, %w: tensor<8x8xbf16>) -> !x {
  %0 = "qfuse.matmul"(%x, %w) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 8>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, resultSegmentSizes = array<i32: 1, 0, 0, 0>} : (!x, tensor<8x8xbf16>) -> !x
  %1 = "qfuse.silu"(%0) : (!x) -> !x
  return %1 : !x
}
