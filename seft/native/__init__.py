"""Compiled kernels of the CPU, which `seft.repair` and `seft.runtime` use, and a Triton kernel of the repair."""
