"""Runs whose workers are Slurm jobs: started, watched, and looked at when they have ended."""

import time

import psutil
import pytest

from geochip.store import journal_path

MADE = {"chips.zarr", "chips.zarr.journal", "chips.parquet", "scenes.parquet", "logs",
        "predictions.zarr", "predictions.zarr.journal", "predictions", "model"}  # fmt: skip
"""What a run has business to leave in its directory."""


def wait_for(condition, process=None, seconds=120):
    """Wait until the condition holds, as long as the process runs; returns what it gave."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() >= end and process is not None:
            process.kill()
            pytest.fail(f"nothing after {seconds} s: {process.communicate()}")
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.1)
    return found


def wait_for_records(store, count, process):
    """Wait until the journal of a store has more records than that."""
    journal = journal_path(store)
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") > count, process)


def left_by(run_dir):
    """What a run has no business to leave: files of keys and locks, processes that know its directory."""
    files = {path.name for path in run_dir.iterdir()}
    processes = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or ())
        if str(run_dir) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            processes.append(words)
    return files - MADE, processes


def finish(process, run_dir, slurm, code=0):
    """Wait for the end of a run, and see that nothing is left of it; returns what it said."""
    out, told = process.communicate(timeout=200)
    assert process.returncode == code, told
    assert slurm.jobs() == []
    assert left_by(run_dir) == (set(), [])
    return out + told


def take_down(slurm, process):
    """Set a node DOWN on which a job runs; returns its name."""
    node = wait_for(lambda: slurm.run("squeue", "-h", "-t", "R", "-o", "%N").split(), process)[0]
    slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    return node
