"""Models: where they come from, what their headers say, loading, target linears, prediction."""
