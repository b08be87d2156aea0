"""Stage vae of the micro model."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from micro import micro


def get_config():
    return micro("vae")
