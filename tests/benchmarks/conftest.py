"""Puts the repository's root on the path: ``benchmarks`` is no installed package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
