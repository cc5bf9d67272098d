"""The importer of FX graphs; beside `bindings`, because importing it imports torch."""

from torch_mlir.extras.fx_importer import ContextCache, FxImporter

__all__ = ["ContextCache", "FxImporter"]
