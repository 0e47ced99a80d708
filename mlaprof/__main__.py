"""`python -m mlaprof`: the command line from a plain checkout, with nothing installed."""

from mlaprof.cli import main

main()
