"""How much memory a generation takes, and how it is made to fit: see docs/memory.md."""
