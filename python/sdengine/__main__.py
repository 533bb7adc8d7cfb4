"""``python -m sdengine``: the command line."""

from .cli import main

main()
