"""The CPU runtime."""
