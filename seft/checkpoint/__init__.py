"""Checkpoint folders: export, model card, metadata, counts of zeros and verification. Also stores pruned weights."""
