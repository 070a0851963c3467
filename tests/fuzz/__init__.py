"""Schemathesis against a running API: `make fuzz`."""
