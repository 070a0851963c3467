"""Repair of a sparse model: train few of its weights, and change its topology within the budget of nonzeros."""

from seft.repair.loop import Repair

__all__ = ["Repair"]
