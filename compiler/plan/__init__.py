"""From the lowered module to the plan that runs.

| file | what it holds |
|---|---|
| builder.py | `build_plan`: the walk over `@main`, its border, torch operators |
| products.py | weights, kernels and library calls |
| reading.py | types, constants and attributes of the module as the plan wants them |
"""

from qfuse.compiler.plan.builder import build_plan

__all__ = ["build_plan"]
