"""What can be said: the qfuse dialect, its types and its verifiers.

| file | what it holds |
|---|---|
| bindings.py | the MLIR bindings; the only file that names their package |
| types.py | `!qfuse.qtensor`, `#qfuse.scheme`, and both as plain Python values |
| quantization_ops.py | pack, unpack, quantize, dequantize, concat |
| matmul_op.py | matmul with its epilogue region, yield |
| glu.py | gated linear units as data, and what they compute; needs no MLIR |
| activations.py | activations and GLUs as scalar arithmetic |
| elementwise_ops.py | add, mul, activations, glu |
| norm_ops.py | rms_norm, rope |
| registry.py | `load_all`, and the list of operations |
"""
