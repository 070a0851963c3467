"""Compiled kernels of the CPU, which `seft.repair` and `seft.runtime` use."""
