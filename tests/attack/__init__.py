"""`python -m tests.attack`: attacks on a running service. Checks that each is refused, or costs only the attacker."""
