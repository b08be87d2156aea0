"""Makes the modules beside the tests importable by name: the fake simulator (also in other processes) and the made-up run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
