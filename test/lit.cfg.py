# ruff: noqa: F821
"""lit configuration: `*.mlir` files run through the tools of the tree they lie in."""

import os
import sys
from pathlib import Path

import lit.formats

HERE = Path(__file__).parent

config.name = "qfuse"
config.test_format = lit.formats.ShTest()
config.suffixes = [".mlir"]
config.test_source_root = str(HERE)
config.test_exec_root = os.environ.get("QFUSE_LIT_OUTPUT", str(HERE / "Output"))
config.environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
config.environment["PATH"] = os.pathsep.join(
    [os.path.dirname(sys.executable), config.environment["PATH"]]
)
config.substitutions += [
    (r"\bqfuse-opt\b", f"{sys.executable} -m qfuse.tools.qfuse_opt"),
    (r"\bqfuse-translate\b", f"{sys.executable} -m qfuse.tools.qfuse_translate"),
    # PyPI's filecheck does not read FILECHECK_OPTS, so its flags stand here.
    (r"\bfilecheck\b", "filecheck --enable-var-scope --reject-empty-vars"),
    ("%python", sys.executable),
]
