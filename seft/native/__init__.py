"""Compiled kernels of the CPU, for `seft.repair` and `seft.runtime`."""
