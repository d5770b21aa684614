"""Runs `python -m geochip.doctor`."""

import sys

from geochip.doctor import main
from geochip.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
