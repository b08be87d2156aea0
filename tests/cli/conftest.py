"""Puts the generators of command lines, which are no tests, on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
