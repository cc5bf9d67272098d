"""Benchmarks of GPU kernels.

| file | what it holds |
|---|---|
| cases.py | shapes, the qfuse operations of each, operands and references |
| static.py | `--suite gpu-static`: machine code and model, without a GPU |
| gemm.py | `--suite gpu-gemm`: ours and others, measured in one run |
| subjects.py | what is measured: ours, cuBLASLt, torch, torch.compile, the baseline |
| baseline.py | the seed's Triton kernel with its fixed tiles |
| chain.py | the MLP of a transformer, fused and unfused |
| kernels.py | our kernels, compiled and started |
| timing.py | CUDA graphs, rotated buffers, the limits of the machine |
"""
