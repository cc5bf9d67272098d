"""What runs a compiled program: torch and a kernel launcher, nothing of MLIR.

| file | what it holds |
|---|---|
| plan.py | the plan: values, steps, weights to prepare, as data |
| calls.py | which torch operator a step means, and what is known about it |
| donation.py | which cache updates may happen in place |
| program.py | a plan with its weights and kernels: what an artifact holds |
| artifact.py | reading and writing that as one safetensors file |
| trace.py | the first call with new shapes: runs the plan and notes what happened |
| arena.py | one buffer for all intermediate results |
| specialize.py | the trace turned into a Python function with everything resolved |
| device.py | where tensors live: the host, or one GPU |
| session.py | caches, buffers, and one specialisation per input shape |
| capture.py | decoding as a CUDA graph |
| profile.py | launches and bytes of a call |
| executable.py | the object a user holds: call, generate, save, report |
"""
