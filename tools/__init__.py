"""For hands: what runs from a shell.

| file | what it holds |
|---|---|
| qfuse.py | `qfuse demo`, `compile`, `run`, `inspect`, `explain` |
| measure_commands.py, bench/ | `qfuse tune` and `qfuse bench` |
| tune.py, tune_calls.py | the former on a GPU: tiles, and library calls |
| cpu_tune.py, cpu_tune_calls.py | on a CPU: entries of kernels, and oneDNN |
| qfuse_opt.py, diagnostics.py | `qfuse-opt`: passes on textual IR |
| qfuse_translate.py | `qfuse-translate`: operations to GPU code, and a report on it |
| demo.py, demo_checkpoint.py | the demo, and the checkpoint it writes |
| inspection.py, explanation.py | showing an artifact, and what dispatch decided |
| files.py, ending.py | writing files, exit codes |
"""
