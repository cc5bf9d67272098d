"""How qfuse operations become CPU kernels: MLIR text, machine code, launches.

| file | what it holds |
|---|---|
| codegen.py | `compile_kernel`, `unsupported`: which family an operation belongs to; the JIT |
| cpu.py | CPU flags, and the levels of kernels they allow |
| signature.py | an outlined kernel function as pointers and types |
| emit.py | writing MLIR text |
| lanes.py | vectors of f32: conversions, reductions |
| fp8.py | decoding and encoding FP8 |
| quantized.py | which quantized tensors there are; from values to codes and scales |
| dequantize.py | expanding rows of a quantized tensor |
| math_functions.py | exp, tanh, erf |
| region.py | epilogue regions and activations on vectors |
| rowwise.py | the frame of row-wise kernels, quantizing a row |
| elementwise.py | element-wise operations, glu, rope, quantize, dequantize |
| norm.py | rms_norm |
| attention.py | attention over caches: entries, stretches of slots |
| attention_rows.py | what is computed for its rows |
| tensor_scale.py | tensor_scale |
| select_experts.py | select_experts |
| routing.py | route, combine |
| combine.py | adding up the rows of a token's experts |
| matmul.py | products by one weight: entries, tasks |
| group_matmul.py | products by the weights of experts |
| group_combine.py | those that add up their rows |
| product_kernel.py | what both share: what is supported, tiles, chunks of rows |
| product.py | steps, runs and blocks: what is multiplied, and how sums are scaled |
| direct.py, tiled.py | the loops for few rows of x, and for many |
| autotune.py, tuned.py | measuring tunables on this CPU, and keeping them on disk |
| product_cost.py | which of them serves how many rows, where nothing was measured |
| codes.py | from packed weights to steps |
| scales.py | scales of packed weights |
| pack_x.py | packing x |
| epilogue.py | from totals to results |

| these need no MLIR | |
|---|---|
| kernel.py | a compiled kernel: the ABI, entries, scratch |
| entry_table.py | which entry was measured to serve which rows best |
| layout.py | how packed weights lie in memory |
| tunables.py | what of products' loops may be chosen, and what is by default |
| weights.py | packing weights |
| loader.py | ELF objects into executable memory |
| pages.py | large pages for weights |
| launcher.py | binding arguments, threads |

cache.py keeps compiled kernels on disk.
"""
