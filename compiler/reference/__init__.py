"""The dialect, executed: an interpreter in numpy that says what a program of qfuse computes.

    results = Interpreter().run(function, [Tensor.of(...), ...])

It is written from the docstrings of the dialect, not from a kernel: products are summed in f64 and
in one order, everything else is done in f32 as the dialect says, and each rounding that the IR
states is made.  So a program and what a right fusion makes of it give the same bits.  It imports no
torch and is meant for small programs; `compiler/verification.py` runs it around passes.

| file | what it holds |
|---|---|
| balls.py | arithmetic on numbers with bounds: what f32 leaves open, as slack |
| values.py | what an SSA value holds: tensors, quantized tensors |
| schemes.py | quantization schemes: decode, encode; the only file that knows them |
| interpreter.py | functions, calls, returns; which rule executes which operation |
| region.py | epilogue regions: scalar arith and math on arrays |
| activations.py | silu, gelu and the rest |
| quantization.py | pack, unpack, quantize, tensor_scale, dequantize, concat |
| elementwise.py | add, mul, activations, glu |
| norm.py | rms_norm, rope |
| product.py | matmul, group_matmul |
| experts.py | select_experts, route, combine |
| attention.py | attention |
| torch_ops.py | the operations of torch that passes raise or fuse; no others |
| difference.py | whether two values are the same |
| inputs.py | random inputs, legal and unpleasant |
"""

from qfuse.compiler.reference.interpreter import Interpreter
from qfuse.compiler.reference.values import Inexecutable, Quantized, Tensor, Value

__all__ = ["Inexecutable", "Interpreter", "Quantized", "Tensor", "Value"]
