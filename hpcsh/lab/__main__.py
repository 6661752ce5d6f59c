"""`python -m hpcsh.lab` is `hpcsh lab`."""

import sys

from hpcsh.lab.cli import main

sys.exit(main(sys.argv[1:]))
