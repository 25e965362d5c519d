"""``python -m dynabert.cli`` is the command ``dynabert``."""

from __future__ import annotations

import sys

from dynabert.cli import main

sys.exit(main())
