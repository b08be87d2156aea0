"""`PYTHON eval/worker --environment NAME` starts a simulator process: Python puts this directory, and no other of ours, on the path."""

import sys

from vpp_worker.process import main

sys.exit(main())
