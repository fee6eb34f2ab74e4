"""``python -m modula_rs``: the same as ``modula-rs``."""

import sys

from modula_rs.cli import main

if __name__ == "__main__":
    sys.exit(main())
