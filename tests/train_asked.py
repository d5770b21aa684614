"""geochip.train_ddp, as a command of its own, to which something is done at a certain point.

python train_asked.py MODULE FUNCTION COUNT RANK HOW TRAIN_DIR FLAG...: as `training.at_call` and `training.asking` say,
on one rank (the others are left alone).
"""

import importlib
import os
import sys

from geochip.errors import run_command
from geochip.interruption import take_note_of_signals
from training import asking, at_call

take_note_of_signals()
name, function, count, rank, how, train_dir, *flags = sys.argv[1:]
if os.environ.get("RANK", "0") == rank:
    module = importlib.import_module(f"geochip.{name}")
    setattr(module, function, at_call(int(count), getattr(module, function), asking(how, train_dir)))
sys.exit(run_command(importlib.import_module("geochip.train_ddp").main, flags))
