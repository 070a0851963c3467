"""Checkpoint folders: export, model card, metadata, counts of zeros and verification.

Also stores the pruned weights from which a retry continues.
"""
