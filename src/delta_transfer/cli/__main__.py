"""`python -m delta_transfer.cli`."""

import sys

from delta_transfer.cli.main import main

sys.exit(main())
