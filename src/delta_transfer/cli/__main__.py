"""`python -m delta_transfer.cli`, as which a command starts itself in several processes."""

import sys

from delta_transfer.cli.main import main

sys.exit(main())
