"""Fuzz tests of a running API with schemathesis: `make fuzz`."""
