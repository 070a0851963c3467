"""Make language models sparse and repair them: prune, sparse fine-tuning, evaluate, export.

Import from the modules; this package itself exports nothing. Importing it loads no module, so that a server can use the
modules that need no torch: `seft.models.source`, `seft.data.records` and `seft.data.validation`.
"""

__version__ = "0.1.0"
