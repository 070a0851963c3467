"""Checkpoint folders: export, model card, facts, counted zeros, verification, packed state."""
