"""The commands of `seft`, one module per group. Slow imports happen inside the functions that need them."""
