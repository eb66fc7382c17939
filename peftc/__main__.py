"""`python -m peftc` is `peftc`."""

from peftc.cli import main

main()
