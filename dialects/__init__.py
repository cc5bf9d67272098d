"""What can be said: the qfuse dialect, its types and its verifiers.

| file | what it holds |
|---|---|
| bindings.py | the MLIR bindings; the only file that names their package |
| types.py | `!qfuse.qtensor`, `#qfuse.scheme`, and both as plain Python values |
| quantization_ops.py | pack, unpack, quantize, dequantize, concat |
| matmul_op.py | matmul with its epilogue region, yield |
| elementwise_ops.py | add, sub, mul, div, activations and other unary operations, glu |
| arithmetic.py, activations.py | what each of those computes, as scalar arithmetic |
| norm_ops.py | rms_norm, rope |
| registry.py | `load_all`, and the list of operations |
"""
