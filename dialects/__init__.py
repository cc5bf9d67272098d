"""What can be said: the qfuse dialect, its types and its verifiers.

| file | what it holds |
|---|---|
| bindings.py | the MLIR bindings; the only file that names their package |
| types.py | `!qfuse.qtensor`, `#qfuse.scheme`, and both as plain Python values |
| quantization_ops.py | pack, unpack, quantize, tensor_scale, dequantize, concat, append_expert |
| matmul_op.py | matmul with its epilogue region, with_scale, yield |
| glu.py | gated linear units as data, and what they compute; needs no MLIR |
| elementwise_ops.py | add, sub, mul, div, activations and other unary operations, glu |
| arithmetic.py, activations.py | what each of those computes, GLUs too, as scalar arithmetic |
| norm_ops.py, roundings.py | rms_norm, rope; where a norm rounds, by name |
| attention_ops.py | attention, over the caches of a decoder |
| epilogue_op.py | epilogue: that of a product which a library computed |
| library_ops.py | library_call, choose, result |
| moe_ops.py | select_experts, route, group_matmul, combine, and the last two as one |
| registry.py | `load_all`, and the list of operations |
"""
