"""``python -m forcegate.cli``: the command without its console script."""

from forcegate.cli import main

main()
