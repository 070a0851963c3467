"""What is measured: scripts that write JSON and print a table. Nothing of the service imports them."""
