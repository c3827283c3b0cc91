"""`python -m delta_transfer`."""

import sys

from delta_transfer.cli.main import main

sys.exit(main())
