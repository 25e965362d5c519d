"""What all tests share."""

from __future__ import annotations

import sys
from pathlib import Path

# Test modules import their neighbours as ``kernels.cases``: the folder of the tests is a root.
sys.path.insert(0, str(Path(__file__).parent))
