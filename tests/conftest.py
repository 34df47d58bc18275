"""Settings of all tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores
