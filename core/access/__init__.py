"""Access control: API keys, browser sign-ins, rate limits, the audit log and encrypted hub tokens."""
