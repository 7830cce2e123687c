"""`python /.jupyter-sandbox FD` inside a container: serve cells from the socket FD."""

import sys

from sandbox_runner.cells import main

main(int(sys.argv[1]))
