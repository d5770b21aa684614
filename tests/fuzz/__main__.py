"""Run thousands of cases, or one again: python tests/fuzz --cases 5000 --seed 7; python tests/fuzz --seed 7 --only 41.

Cases run in processes of their own, one after another; one that dies (a library that aborts, a hang) fails its case and
is followed by another. Prints each failure with the command that repeats it, and at the end how many come from which
line. The exit code is 1 when a case failed.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.cases import Verdict, kind_of, run_case
from fuzz.targets import KINDS


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python tests/fuzz", description="Break inputs at random; see how commands end.")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this case alone, with all that it prints; its directory stays")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--process", nargs=3, help=argparse.SUPPRESS)  # scratch, first, end
    asked = parser.parse_args()
    asked.kinds = tuple(asked.kinds)
    return asked


def cases(asked: argparse.Namespace, scratch: Path, first: int, end: int) -> None:
    """Run cases in this process; for each a line when it begins and one when it ends."""
    from distributed import LocalCluster

    from fuzz.pristine import make

    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    ) as cluster:  # fmt: skip
        address = cluster.scheduler_address
        pristine = scratch / "pristine"
        if not pristine.exists():
            make(pristine, address)
        for number in range(first, end):
            if kind_of(number) not in asked.kinds:
                continue
            print(json.dumps({"begins": number}), flush=True)
            verdict = run_case(pristine, scratch, address, seed=asked.seed, number=number, kind=kind_of(number))
            print(json.dumps(asdict(verdict)), flush=True)
            if verdict.fault.startswith("hung"):
                # A worker may wait with it.
                sys.stdout.flush()
                os._exit(3)


def all_verdicts(asked: argparse.Namespace, scratch: Path, first: int, end: int):
    """The verdicts of cases that run in processes of their own, as they come."""
    while first < end:
        command = [sys.executable, __file__, "--seed", str(asked.seed), "--kinds", *asked.kinds]
        command += ["--process", str(scratch), str(first), str(end)]
        begun = None
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            for line in process.stdout:
                try:
                    document = json.loads(line)
                except ValueError:
                    continue
                if "begins" in document:
                    begun = document["begins"]
                else:
                    yield Verdict(**document)
                    first, begun = document["number"] + 1, None
            process.wait()
            errors.seek(0)
            said = errors.read()[-3000:]
        if process.returncode == 0:
            return
        if begun is not None:
            yield Verdict(
                seed=asked.seed, number=begun, kind=kind_of(begun), what="?", output=said,
                fault=f"the process died: exit code {process.returncode}", where=" ".join(said.split())[:200],
            )  # fmt: skip
            first = begun + 1
        elif process.returncode != 3:
            sys.exit(f"the harness does not run: {said}")


def main() -> int:
    asked = arguments()
    if asked.process:
        scratch, first, end = asked.process
        cases(asked, Path(scratch), int(first), int(end))
        return 0
    scratch = Path(tempfile.mkdtemp(prefix="geochip-fuzz-"))
    one = asked.only is not None
    first, end = (asked.only, asked.only + 1) if one else (0, asked.cases)
    failed, ran = defaultdict(list), Counter()
    for verdict in all_verdicts(asked, scratch, first, end):
        ran[verdict.kind] += 1
        if one:
            print(verdict.output)
        if verdict.fault:
            print(verdict, flush=True)
            failed[f"{verdict.where or verdict.kind}: {verdict.fault.split(':')[0]}"].append(verdict)
    print(f"\n{sum(ran.values())} cases, {sum(map(len, failed.values()))} failed: {dict(ran)}; directories: {scratch}")
    for place, verdicts in sorted(failed.items(), key=lambda item: -len(item[1])):
        print(f"{len(verdicts):5}  {place}   such as --only {verdicts[0].number} ({verdicts[0].fault[:150]})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
