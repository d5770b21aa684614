"""A Slurm with accounting (slurmdbd): accounts, qualities of service, and the limits of both."""

import contextlib
import re
import time

import pytest

from geochip.cluster import dask_client, run_tasks
from geochip.config import ClusterConfig, SlurmJobConfig
from geochip.doctor import main as doctor
from geochip.errors import WorkError
from geochip.slurm import SlurmError
from helpers import data_flags, write_scene
from slurm.conftest import development_slurm, nothing_left

NO_LIMITS = (
    "MaxSubmitJobs=-1",
    "MaxJobs=-1",
    "GrpTRES=cpu=-1",
    "GrpTRESMins=cpu=-1",
    "MaxTRESPerJob=cpu=-1",
    "MaxWall=-1",
)


@pytest.fixture(scope="module")
def with_accounts():
    # As on many sites it takes jobs that it can never run.
    with development_slurm("slurmdbd", "mariadbd", "sacctmgr", ACCOUNTS=1, STRICT=0) as cluster:
        cluster.run("sacctmgr", "-iQ", "add", "qos", "small", "set", "Flags=DenyOnLimit", "MaxWall=5")
        cluster.run("sacctmgr", "-iQ", "modify", "user", "root", "set", "qos+=small")
        yield cluster


@pytest.fixture
def limit(with_accounts):
    """Sets a limit of the person; it is gone afterwards."""

    def limit(*limits):
        with_accounts.run("sacctmgr", "-iQ", "modify", "user", "root", "set", *limits)

    yield limit
    limit(*NO_LIMITS)
    nothing_left(with_accounts)


def cluster(workers=1, *, wait_minutes=5, **jobs):
    return ClusterConfig(
        kind="slurm", workers=workers, wait_minutes=wait_minutes, scheduler_interface="lo",
        cpu=SlurmJobConfig(**{"interface": "lo", "memory": "512MiB", **jobs}),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ({"account": "nonsense"}, r"sbatch: .*Invalid account or account/partition combination specified; name an account that you may use there \(cluster.cpu.account; `sacctmgr show user"),
        ({"qos": "nonsense"}, r"sbatch: .*Invalid qos specification; name a quality of service that you may use \(cluster.cpu.qos\)"),
        ({"qos": "small"}, r"sbatch: QOSMaxWallDurationPerJobLimit; .*Job violates accounting/QOS policy .*; ask for less time \(cluster.cpu.walltime;"),
    ],
)  # fmt: skip
def test_what_accounting_refuses_ends_the_run_at_once_in_its_words(tmp_path, limit, jobs, words):
    with pytest.raises(SlurmError, match=words), dask_client(cluster(**jobs), run_dir=tmp_path):
        pytest.fail("no job was submitted")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (["GrpTRESMins=cpu=0"], r"^job \d+ will never start: the budget of your account is used up \(AssocGrpCPUMinutesLimit\); name another account"),
        (["MaxTRESPerJob=cpu=1"], r"^job \d+ will never start: it asks for more, or less, than one job may have by the limits of your account \(AssocMaxCpuPerJobLimit\); ask for less"),
        (["GrpTRES=cpu=1"], r"^no worker for 0.1 minutes .*: 0 of 1 workers are there; job \d+ waits: your account has as much running as its limits allow \(AssocGrpCpuLimit\)"),
    ],
)  # fmt: skip
def test_what_accounting_never_starts_ends_the_run_with_the_cause(tmp_path, limit, limits, words):
    limit(*limits)
    config = cluster(cores=2, wait_minutes=0.1 if "GrpTRES=cpu=1" in limits else 5)
    with pytest.raises(WorkError, match=words), dask_client(config, run_dir=tmp_path) as client:
        run_tasks(client, time.sleep, [("a", (0,))], print)


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ({"partition": "short", "walltime": "1-0"}, r"asks for more time than the partition allows \(PartitionTimeLimit\); lower walltime"),
        ({"partition": "members"}, r"may not use the partition \(Job's account not permitted to use this partition \(members allows members not root\)\); name another partition"),
        ({"cores": 100}, r"node of its partition has what it asks for \(PartitionConfig\); lower cores"),
    ],
)  # fmt: skip
def test_a_job_that_slurm_takes_and_never_starts_ends_the_run_with_the_cause(tmp_path, limit, jobs, words):
    with (
        pytest.raises(WorkError, match=rf"^job \d+ will never start: (it|no) {words}"),
        dask_client(cluster(**jobs), run_dir=tmp_path) as client,
    ):
        run_tasks(client, time.sleep, [("a", (0,))], print)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (["MaxSubmitJobs=1"], r"sbatch: AssocMaxSubmitJobLimit; .*; ask for fewer workers .*; going on with 1 of 2 workers"),
        (["MaxJobs=1"], r"1 of 2 workers are there; job \d+ waits: your account has as much running as its limits allow \(AssocMaxJobsLimit\)"),
    ],
)  # fmt: skip
def test_a_run_goes_on_with_the_workers_that_accounting_lets_it_have(tmp_path, limit, capsys, limits, words):
    limit(*limits)
    done = []
    with dask_client(cluster(2), run_dir=tmp_path) as client:
        run_tasks(client, time.sleep, ((str(n), (0.5,)) for n in range(12)), lambda key, _: done.append(key))
    assert sorted(map(int, done)) == list(range(12))
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        (["account=science"], [r"ok +account: science, of root, science"]),
        (["account=nonsense", "qos=nonsense"], [
            r"warn +account: nonsense is not among yours, root, science; name one of them",
            r"FAIL +cpu job: Slurm refuses it: .*Invalid (qos|account).*; name a",
        ]),
    ],
)  # fmt: skip
def test_the_doctor_knows_accounts(tmp_path, limit, capsys, flags, lines):
    write_scene(tmp_path / "data", "train", "1")
    options = [f"--cluster.{jobs}.{flag}" for jobs in ("cpu", "gpu") for flag in (*flags, "interface=lo")]
    with contextlib.suppress(WorkError):
        doctor(
            [
                f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "train"), "--train.val_split=null",
                "--infer.split=train", "--chips.size=32", "--model.architecture=linear", "--cluster.kind=slurm", *options,
            ]
        )  # fmt: skip
    told = capsys.readouterr().out
    for line in lines:
        assert re.search(f"^{line}", told, re.MULTILINE)
