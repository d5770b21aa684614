"""Say what would fail, before it does: the machine, the disks, the data, the network, Slurm, and a worker.

    python -m geochip.doctor --config run.yaml                look at everything; starts a worker of each kind
    python -m geochip.doctor --config run.yaml --no_probe     start no worker
    python -m geochip.doctor --config run.yaml --wait         wait for workers as long as a run would

One line a finding: `ok`; `warn`, for what may go wrong or could go better; `FAIL`, for what would end a run, with what
to do. The exit code is 1 when anything would fail. Nothing is written, but for marks on the disks, which are removed at
once.

Workers import this package: what it needs comes with the modules in it.
"""

from collections.abc import Sequence

from geochip.errors import WorkError, as_named_here
from geochip.run_file import parse_command

_SWITCHES = {
    "no_probe": "start no worker",
    "wait": "wait for the probes' jobs as long as cluster.wait_minutes says, not for a minute",
}


def main(argv: Sequence[str]) -> None:
    """Run the command; see the package's docstring.

    Raises:
        WorkError: when something would make a run fail.
    """
    called = parse_command(
        argv, command="doctor", description="Say what would fail in a run, before it does.", switches=_SWITCHES
    )
    # Not above: a worker that is only to look at its machine would import all of geochip, PyTorch included.
    from geochip.doctor.examination import examine
    from geochip.doctor.findings import Case, closing

    case = Case(config=called.config, probe="no_probe" not in called.switches, patient="wait" in called.switches)
    findings = []
    for finding in examine(case):
        # Each as soon as it is known: a probe may take a minute.
        print(as_named_here(str(finding)), flush=True)
        findings.append(finding)
    failed = sum(one.level == "FAIL" for one in findings)
    if failed:
        raise WorkError(
            f"a run would fail: see the {failed} line{'s that begin' if failed > 1 else ' that begins'} with FAIL"
        )
    print(closing(findings))
