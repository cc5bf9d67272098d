"""GPU kernels: qfuse operations as Triton IR, and what the installed Triton makes of it.

signature.py   an outlined kernel as data: its operation, and the parameters that serve it
lower.py       kernel -> `TritonKernel`: launches of Triton IR, per range of M
gemm.py, norm.py, rope.py, rowwise.py   families of kernels; epilogue.py, tile.py: shared
dequantize.py     opening quantized tensors
tensor_scale.py   the scale of a whole tensor
product.py, operands.py, gemv.py        a product as data; its main loop; that for one row
apart.py       the epilogue of a product that a library computed
weight_rows.py, packed.py, fp8.py       rows of w by packing; codes of fewer bits, FP8 and scales
select_experts.py, routing.py, group_gemm.py, group_tiles.py, group_combine.py, combine.py   layers
               of experts: routers, sorting rows, products, how they are cut, and sums
tiles.py       how a product is cut; problem.py: what that is chosen for, as plain data
tile_choice.py, tile_model.py           the choice: by a table, or by a model of what takes how long
tile_table.py, tile_entry.py, gpu_signature.py   the table, which `qfuse tune` writes: tiles, and
               libraries' calls against them; what it is signed by
builder.py     typed operations of the `tt` dialect
text.py        the module as text that a given Triton reads
binary.py      text -> ttgir, ptx, cubin, amdgcn, hsaco; cached
ahead.py       that for many launches at once, in several processes
embedding.py   kernels as part of the host module, as Triton IR and as gpu.binary
gpu_kernel.py  what an artifact carries of a kernel: machine code and how to start it
launcher.py, driver.py, cuda_driver.py, hip_driver.py   starting it through the CUDA driver or the
               HIP runtime, without Triton
weights.py     weights of several parts joined by rows
interpreter/   running the IR on numpy, with traps
sass.py        what is in a cubin: registers, spills, tensor-core instructions
"""
