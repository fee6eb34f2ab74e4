"""The length of tests that try random values: short by default, ``FUZZ`` times as long if that variable is set (``make fuzz``)."""

import os

TIMES = int(os.environ.get("FUZZ", "1"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
