"""`python -m multilobe_ui`."""

import sys

from .cli.commands import main

sys.exit(main())
