"""Laws of what the processes share."""
