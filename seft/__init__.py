"""Make language models sparse and repair them: prune, sparse fine-tuning with an evolving topology, evaluate, export.

The modules are the interface. Importing the package loads none of them, so that a server can use the modules that need
no torch: `seft.models.source`, `seft.data.records` and `seft.data.validation`.
"""

__version__ = "0.1.0"
