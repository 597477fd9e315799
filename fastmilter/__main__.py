"""``python -m fastmilter``: the same as the command ``fastmilter``."""

import sys

from fastmilter.commands import main

sys.exit(main())
