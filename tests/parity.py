"""`python -m tests.parity DIR --seed S`: recorded vectors of the published modules against ours. The code is in `tools/parity.py`."""

import sys

from tools.parity import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
