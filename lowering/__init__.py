"""How an operation becomes code.

| file or folder | what it holds |
|---|---|
| target.py | what a program can be compiled for |
| cpu/ | kernels emitted as MLIR vectors, JIT-compiled, loaded and launched |
| triton/ | kernels in the Triton dialect, compiled without a GPU, and their interpreter |
| cache_file.py, table_file.py | compiled code, and tables of measurements, on disk |
| measured_call.py | what such a table says of a library's product |
"""
