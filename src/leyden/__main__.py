"""``python -m leyden``: the command ``leyden``."""

import sys

from leyden.cli import main

sys.exit(main())
