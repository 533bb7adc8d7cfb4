"""Where weights are while a network runs."""
