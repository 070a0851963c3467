"""One-shot pruning of a model, one decoder block after another: one loop, and one file per pruning method."""
