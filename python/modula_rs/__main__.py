"""``python -m modula_rs`` runs the command line ``modula-rs``."""

import sys

from modula_rs.cli import main

if __name__ == "__main__":
    sys.exit(main())
