"""Make language models sparse and repair them: prune, sparse fine-tuning with an evolving topology, evaluate, export.

The modules are the interface; nothing is loaded before it is asked for, so that `seft.models.source`, `seft.data.records` and
`seft.data.validation` (what a model or a dataset may be) cost a server no torch.
"""

__version__ = "0.1.0"
