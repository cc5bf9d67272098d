// Every pass has one line that says what it does.
// RUN: qfuse-opt --list-passes | filecheck %s
// CHECK: qfuse-raise-torch           Turn linears, routers, experts
// CHECK: qfuse-expand-quantize       Turn a product that quantizes its input
// CHECK: qfuse-fuse-shared-expert    Make the shared expert
// CHECK: qfuse-fuse-gate-up          Merge gate and up
// CHECK: qfuse-fuse-qkv              Merge the plain products of one value
// CHECK: qfuse-fuse-rope             Recognize
// CHECK: qfuse-fuse-epilogue         Fold bias, activation and residual
// CHECK: qfuse-fuse-norm-quantize    Make one `qfuse.rms_norm`
// CHECK: qfuse-fuse-act-quantize     Quantize an activation's result
// CHECK: qfuse-raise-attention       Raise attention whose caches
// CHECK: qfuse-convert-to-cpu        Outline every qfuse computation
// CHECK: canonicalize
