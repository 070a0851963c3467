"""One-shot pruning, block by block: one loop, and one file per pruning method."""
