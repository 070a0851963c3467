"""Repair of a sparse model by training. The number of nonzeros does not increase; the method `seft` moves them."""

from seft.repair.loop import Repair, RepairResult

__all__ = ["Repair", "RepairResult"]
