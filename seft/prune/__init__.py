"""One-shot pruning, block by block: one loop, and one file for each way to judge a weight."""
