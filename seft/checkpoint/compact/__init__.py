"""The compact container: one file with a whole model folder, in which zeros take little space.

`docs/compact-format.md` describes the format. `writer` writes a container and `reader` reads it; neither needs torch.
`load` gives a transformers model straight from a container.
"""
