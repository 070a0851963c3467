"""The commands of `seft`, one module per group of commands. Slow imports happen inside the functions that need them."""
