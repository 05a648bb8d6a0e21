"""`python -m lewm` is `lewm`."""

from lewm.cli import main

main()
