"""The words of the command `seft`, a module for each group. What is slow to load is loaded where it is needed."""
