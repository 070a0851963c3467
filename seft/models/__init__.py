"""Models: resolving a reference, reading headers, loading, finding the linear maps to prune, and prediction."""
