"""Models: resolve a reference, read headers, load, find the linear layers to prune, and predict."""
