"""geochip.train_ddp as a command whose first rank writes down, in a step, where training listens: rank_ports.py FILE FLAG...

No rank may unpickle what came from another process: what does so ends it.
"""

import importlib
import json
import os
import sys
from pathlib import Path

import psutil
import torch.distributed.distributed_c10d as c10d

from geochip.errors import run_command
from training import at_call


def refuse(*_args, **_kwargs):
    raise AssertionError("something that came over the network was unpickled")


def write_down():
    me = psutil.Process()
    found = {
        name: [one.laddr.ip for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
        for name, process in (("rank", me), ("parent", me.parent()))
    }
    Path(sys.argv[1]).write_text(json.dumps({**found, "command": me.parent().cmdline()}))


c10d._tensor_to_object = c10d._object_to_tensor = refuse
train_ddp = importlib.import_module("geochip.train_ddp")
if os.environ.get("RANK", "0") == "0":
    train_ddp.summed_loss = at_call(1, train_ddp.summed_loss, write_down)
sys.exit(run_command(train_ddp.main, sys.argv[2:]))
