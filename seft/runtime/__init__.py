"""Runs pruned models on a CPU and uses their zeros: compressed linears, text generation, and a server for one model.

`seft.accelerate` and the commands `seft generate` and `seft serve` call it.
"""
