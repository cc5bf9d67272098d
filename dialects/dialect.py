"""The `qfuse` dialect object, and the base of its operations."""

# Field annotations of dialect classes are read while the class is made, so no file under
# `dialects/` may import `annotations` from `__future__`: every field would become an attribute.

from qfuse.dialects.bindings import ext


class QFuse(ext.Dialect, name="qfuse"):
    """Owner of every `qfuse.*` operation, type and attribute."""


class Op(QFuse.Operation):
    """A `qfuse` operation: its fields say what IRDL can check, `violation` says the rest."""

    def violation(self) -> str | None:
        """Why this operation is not legal, or None."""
        return None

    def verify_invariants(self) -> bool:
        present = set(self.operation.attributes)
        missing = [
            f.name
            for f in self._fields
            if isinstance(f, ext.AttributeDef) and f.name not in present
        ]
        why = f"needs the attribute {missing[0]}" if missing else self.violation()
        if why is not None:
            self.location.emit_error(f"'{self.operation.name}' op {why}")
        return why is None
