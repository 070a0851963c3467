"""The evolution loop: train few weights of a sparse model, and let the topology change while the budget holds."""

from seft.repair.loop import Repair

__all__ = ["Repair"]
