"""Settings of all tests."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores

# Modules are compiled once, not by each of the hundreds of interpreters and forks that the tests start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
