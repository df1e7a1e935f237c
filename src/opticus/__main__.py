"""`python -m opticus` is the command `opticus`."""

import sys

from opticus.cli.main import main

sys.exit(main())
