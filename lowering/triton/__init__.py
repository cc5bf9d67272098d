"""GPU kernels: qfuse operations as Triton IR, and what the installed Triton makes of it.

signature.py   an outlined kernel as data: its operation, and the parameters that serve it
lower.py       kernel -> `TritonKernel`: launches of Triton IR, per range of M
gemm.py, norm.py, rope.py, rowwise.py   families of kernels; epilogue.py, tile.py: shared
product.py, operands.py, gemv.py        a product as data; its main loop; that for one row
tiles.py       how a product is cut
builder.py     typed operations of the `tt` dialect
text.py        the module as text that a given Triton reads
binary.py      text -> ttgir, ptx, cubin, amdgcn; cached
gpu_kernel.py  what an artifact carries of a kernel: machine code and how to start it
launcher.py, driver.py                  starting it through the CUDA driver, without Triton
sass.py        what is in a cubin: registers, spills, tensor-core instructions
"""
