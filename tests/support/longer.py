"""How long the tests run that try things at random: a moment by default, as many times that as ``FUZZ`` says (``make fuzz``)."""

import os

TIMES = int(os.environ.get("FUZZ", "1"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
