"""The wheel and its extras."""
