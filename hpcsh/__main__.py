"""`python -m hpcsh`."""

from hpcsh.cli import main

raise SystemExit(main())
