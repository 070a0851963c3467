"""Checkpoint folders: export, model card, facts, zero counts, verification, packed pruned state."""
