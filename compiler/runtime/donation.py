"""Which cache updates may overwrite the old cache.

In the plan `qfuse.kv_update` is functional.  It may write in place when nothing reads the old
contents afterwards, and the end of the program counts as a reader: a cache that is not returned
keeps its contents.
"""

from qfuse.compiler.runtime.calls import KV_UPDATE, base_name
from qfuse.compiler.runtime.plan import Plan, TorchStep, refs


def donated_updates(plan: Plan) -> frozenset[int]:
    """The indices of the steps that may update their cache in place."""
    final = dict(plan.cache_results)
    end = len(plan.steps)
    last_read: dict[int, int] = {}
    derived: dict[int, set[int]] = {}  # a value, and what may share its memory
    for i, step in enumerate(plan.steps):
        for value in step.reads:
            last_read[value] = i
    for output in plan.outputs:
        for value in refs(output.arg):
            last_read[value] = end
    for cache in plan.caches:
        last_read[final.get(cache.name, cache.value)] = end

    for step in reversed(plan.steps):
        for value in step.results:
            derived.setdefault(value, {value})
        if not isinstance(step, TorchStep) or step.op.startswith("qfuse."):
            continue
        # Any torch operator may return a view of an operand: this errs towards a copy.
        for value in step.reads:
            shared = derived.setdefault(value, {value})
            for result in step.results:
                shared |= derived[result]

    owned = {cache.value for cache in plan.caches}
    donated = set()
    for i, step in enumerate(plan.steps):
        if not isinstance(step, TorchStep) or base_name(step.op) != KV_UPDATE:
            continue
        old, *rest = (arg.value for arg in step.args)
        family = derived.get(old, {old})
        if old not in owned or family & set(rest):
            continue
        if all(last_read.get(value, -1) <= i for value in family):
            donated.add(i)
            owned.add(step.results[0])
    return frozenset(donated)
