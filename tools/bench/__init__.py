"""Benchmarks of kernels.

| file | what it holds |
|---|---|
| cases.py | shapes, the qfuse operations of each, operands and references |
| row_cases.py | the same of other schemes that libraries have |
| static.py | `--suite gpu-static`: machine code and model, without a GPU |
| gemm.py | `--suite gpu-gemm`: ours and others, measured in one run |
| subjects.py | what is measured: ours, cuBLASLt, torch, torch.compile, the baseline |
| baseline.py | the seed's Triton kernel with its fixed tiles |
| chain.py | the MLP of a transformer, fused and unfused |
| kernels.py | our kernels, compiled and started |
| timing.py | CUDA graphs, rounds, rotated buffers, the limits of a GPU |
| cpu_limits.py | the limits of a CPU |

Products on a CPU, by weights of every scheme:

| file | what it holds |
|---|---|
| cpu_schemes.py | weights and activations: types, random tensors, values |
| cpu_rounds.py | rounds on a machine that others use, too |
| cpu_report.py | rows of the suites: verified, then measured beside the limits |
| cpu_linear.py, cpu_rowwise.py | `--suite cpu-linear`: products, and what quantizes their inputs |
| cpu_peers.py, cpu_iree.py | what they are compared with |
| cpu_goals.py, FIGURES.md | what they are to reach, and what is missed; what was measured |
| cpu_norm.py | `--suite cpu-norm`: residual, norm and quantization in one kernel |
| cpu_mlp.py | `--suite cpu-mlp`: the MLP of a transformer, fused and unfused |
| cpu_model.py, cpu_gguf.py | `--suite cpu-model`: tokens of whole models; one in GGUF |
| cpu_compile.py, kernel_clock.py | `--suite cpu-compile`: what kernels take to compile |

Experts of a mixture-of-experts layer, from bf16 tokens to their sums:

| file | what it holds |
|---|---|
| moe.py | models, routings, tensors and the reference |
| moe_chain.py | the kernels that the compiler makes of a layer |
| moe_peers.py | torch: eager, a loop in bf16, grouped_mm, scaled_grouped_mm |
| moe_suite.py | the rows of a report |
| cpu_moe.py, gpu_moe.py | `--suite cpu-moe`, `--suite gpu-moe`: ours, and the machine |
| table.py | reports for people, of all suites |
"""
