"""Compiled kernels of the CPU, for `seft.prune`, `seft.repair` and `seft.runtime`."""
