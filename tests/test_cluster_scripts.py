"""What the scripts of cluster/ ask of Slurm, without a Slurm: programs that write down how they were called stand in."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from geochip.cluster import job_script
from geochip.run_file import parse_run_config
from helpers import ROOT
from told import told

CLUSTER = ROOT / "cluster"
STEPS = ("chip", "train", "infer", "evaluate")

# Writes a line for each call: name, arguments and what of the environment matters; the answers are Slurm's.
STAND_IN = """#!{python}
import json, os, pathlib, sys, time
here = pathlib.Path(__file__).parent
name, arguments = pathlib.Path(__file__).name, sys.argv[1:]
kept = {{key: value for key, value in os.environ.items() if key.startswith(("SLURM", "SBATCH", "GEOCHIP", "OMP", "GLOO", "NCCL", "PET"))}}
with open(here / "calls", "a") as calls:
    calls.write(json.dumps([name, arguments, kept]) + chr(10))
answer = json.loads((here / "answers").read_text())
number = sum(line.startswith('["' + name + '"') for line in (here / "calls").read_text().splitlines())
if number in answer.get("silent", {{}}).get(name, []):
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
if name == "sbatch" and "--test-only" in arguments:
    (here / ("script%d" % number)).write_text(sys.stdin.read())
    if number == answer.get("refused"):
        sys.exit("allocation failure: " + answer.get("refusal", "Invalid account"))
    print("sbatch: Job 9 to start at 2026-03-01T14:00:00 using 1 processors on nodes node1", file=sys.stderr)
elif name == "sbatch":
    number = sum(line.startswith('["sbatch"') for line in (here / "calls").read_text().splitlines())
    if number == answer.get("refused"):
        sys.exit("sbatch: error: Batch job submission failed: " + answer.get("refusal", "Invalid account"))
    print(100 + number)
elif name == "squeue":
    print(*answer.get("queued", []), sep=chr(10))
elif name == "scontrol" and arguments[:2] == ["show", "partition"]:
    print(answer.get("partitions", ""))
elif name == "scontrol" and arguments[0] == "show":
    print("node1\\nnode2" if arguments[1] == "hostnames" else answer["job"])
elif name in ("srun", "python"):
    while answer.get("until") and not pathlib.Path(answer["until"]).exists():
        try:
            time.sleep(0.05)
        except KeyboardInterrupt:
            sys.exit(answer.get("interrupted", 130))
    for path in answer.get("makes", []):
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_text("interrupted by SIGUSR2 in epoch 2 of 3, after 5 of 80 steps")
    sys.exit(answer.get("exit", 0))
"""


class Site:
    """A login node, or a node that a job runs on, with stand-ins for Slurm and Python."""

    def __init__(self, directory):
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir(parents=True)
        for name in ("sbatch", "squeue", "scontrol", "scancel", "srun", "python", "sleep"):
            path = self.bin / name
            path.write_text(STAND_IN.format(python=sys.executable))
            path.chmod(0o755)
        self.answer(job="JobId=7 JobState=RUNNING Command=(null)")
        self.run_file = directory / "run.yaml"
        self.run_file.write_text("train:\n  epochs: 1\n")
        self.out = directory / "out"
        self.environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(directory)}
        self.describe("")

    def describe(self, text):
        file = self.directory / "site.env"
        file.write_text(text)
        self.environment["GEOCHIP_SITE"] = str(file)

    def answer(self, **answers):
        (self.bin / "answers").write_text(json.dumps({"job": "JobId=7 JobState=RUNNING Command=(null)", **answers}))

    def run(self, script, *arguments, cluster=CLUSTER, **environment):
        return subprocess.run(
            ["bash", str(cluster / script), *map(str, arguments)], env={**self.environment, **environment},
            cwd=self.directory, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def job(self, step, *arguments, **environment):
        """A batch script as it runs in job 7."""
        given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", **environment}
        return self.run(f"{step}.sbatch", self.out, self.run_file, *arguments, **given)

    def calls(self, name):
        file = self.bin / "calls"
        calls = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [(arguments, environment) for called, arguments, environment in calls if called == name]

    def submitted(self, **environment):
        """The arguments of sbatch, by step, of a pipeline that was submitted."""
        done = self.run("pipeline.sh", self.out, self.run_file, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        return dict(zip(STEPS, (arguments for arguments, _ in self.calls("sbatch")), strict=True))


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def fails(done, *texts, code=2):
    assert done.returncode == code, done.stderr
    for text in texts:
        assert text in done.stderr
    assert "unbound" not in done.stderr
    assert done.stderr.count("geochip: error:") == 1


def test_shellcheck_finds_nothing():
    files = sorted([*CLUSTER.rglob("*.sh"), *CLUSTER.glob("*.sbatch"), CLUSTER / "site.env", ROOT / ".ci" / "run"])
    assert len(files) >= 10
    done = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *files],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", ["pipeline.sh", *(f"{step}.sbatch" for step in STEPS)])
@pytest.mark.parametrize("arguments", [[], [""], ["--help"], ["out", "run.yaml", "more"]])
def test_without_an_output_directory_usage_is_printed_and_nothing_is_done(site, script, arguments):
    done = site.run(script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ")
    assert f"cluster/{script}" in done.stderr
    assert "directory of the run" in done.stderr
    assert not site.calls("sbatch")
    assert not site.out.exists()


def test_an_unedited_site_file_submits_four_jobs_in_a_row(site):
    del site.environment["GEOCHIP_SITE"]
    submitted = site.submitted()
    common = ["--open-mode=append", "--requeue", "--signal=B:USR2@300", "--export=ALL"]
    driver = ["--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=4G", "--time=24:00:00"]
    gpu = ["--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=4", "--mem=16G", "--time=02:00:00"]
    expected = {"chip": driver, "train": gpu, "infer": driver, "evaluate": [*driver[:-1], "--time=01:00:00"]}
    for number, step in enumerate(STEPS):
        after = [f"--dependency=afterok:{100 + number}", "--kill-on-invalid-dep=yes"] if number else []
        assert submitted[step] == [
            "--parsable", *expected[step], f"--job-name={step}-geochip", f"--output={site.out}/logs/{step}-%j.out",
            *common, *after, str(CLUSTER / f"{step}.sbatch"), str(site.out), str(site.out / "run.yaml"),
        ]  # fmt: skip
    # What the batch scripts say of themselves, for whoever submits one alone, is the same.
    for step in STEPS:
        directives = re.findall(r"^#SBATCH (.*)$", (CLUSTER / f"{step}.sbatch").read_text(), re.MULTILINE)
        assert set(directives) == {f"--job-name={step}-geochip", *common[:3]}


def test_what_is_printed_says_how_to_watch_and_to_go_on(site):
    done = site.run("pipeline.sh", site.out, site.run_file)
    assert "squeue --jobs=101,102,103,104" in done.stdout
    logs = " ".join(f"{site.out}/logs/{step}-{101 + number}.out" for number, step in enumerate(STEPS))
    assert f"tail -F {logs}\n" in done.stdout
    assert "scancel 101 102 103 104" in done.stdout
    assert f"{site.out}/eval.json" in done.stdout
    assert (site.out / "logs" / "jobs").read_text() == "chip 101\ntrain 102\ninfer 103\nevaluate 104\n"
    assert (site.out / "logs").stat().st_mode & 0o777 == 0o700
    assert (site.out / "run.yaml").read_text() == site.run_file.read_text()


def test_a_run_goes_on_from_where_it_was_begun(site, tmp_path):
    """Relative paths of its run file are meant from there, wherever it is submitted again."""
    site.submitted()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    began = site.directory
    assert (site.out / "logs" / "directory").read_text() == f"{began}\n"
    (site.bin / "python").write_text(f"#!/bin/bash\npwd >>'{site.bin}/where'\n")
    environment = {**site.environment, "SLURM_JOB_ID": "7"}
    for script in ("chip.sbatch", "pipeline.sh --doctor"):
        command = f"bash {CLUSTER}/{script} {site.out}"
        subprocess.run(
            ["bash", "-c", command], env=environment, cwd=elsewhere, check=True, capture_output=True, timeout=60
        )
    assert (site.bin / "where").read_text() == f"{began}\n" * 2
    (site.out / "logs" / "directory").write_text("/nowhere\n")
    # It may do without.
    done = site.job("chip")
    assert done.returncode == 0
    assert "geochip: warning: this run was begun in /nowhere, from which relative paths" in done.stderr


def test_a_batch_script_alone_is_held_to_the_runs_own_file(site):
    assert site.job("chip").returncode == 0
    assert (site.out / "run.yaml").read_text() == site.run_file.read_text()
    # pipeline.sh knows of it.
    assert (site.out / "logs" / "jobs").read_text() == "chip 7\n"
    site.run_file.write_text("train:\n  epochs: 2\n")
    # What began with the first one goes on with it.
    assert site.job("chip", SLURM_RESTART_COUNT="1").returncode == 0
    assert geochip_flags(site.calls("python")[-1])[1][1] == str(site.out / "run.yaml")
    assert (site.out / "logs" / "jobs").read_text() == "chip 7\n"
    assert not list(site.out.glob("run.yaml.*"))
    fails(site.job("evaluate"), f"was begun with another run file: {site.out}/run.yaml differs from {site.run_file}")
    assert len(site.calls("python")) == 2


def test_every_step_sweeps_keys_of_drivers_that_are_gone(site):
    for name, minutes in (("node1-7-1", 6), ("node2-8-1", 1)):
        keys = site.out / ".keys" / name
        keys.mkdir(parents=True)
        (keys / "key.pem").touch()
        os.utime(keys, (time.time() - 60 * minutes,) * 2)
    assert site.job("evaluate").returncode == 0
    assert [path.name for path in (site.out / ".keys").iterdir()] == ["node2-8-1"]
    # What cannot be swept keeps nothing from its work.
    rm = site.bin / "rm"
    rm.write_text('#!/bin/sh\ncase "$*" in *.keys*) exit 1 ;; esac\nexec /bin/rm "$@"\n')
    rm.chmod(0o755)
    os.utime(site.out / ".keys" / "node2-8-1", (0, 0))
    assert site.job("evaluate").returncode == 0
    rm.unlink()
    assert site.job("train").returncode == 0
    assert not (site.out / ".keys").exists()


def test_what_a_profile_says_stays_where_the_site_file_says_nothing(site):
    profiles = CLUSTER / "jobqueue.yaml"
    site.describe(f"GEOCHIP_PROFILES='{profiles}'\nGEOCHIP_GPU_MEMORY=24G\n")
    assert site.job("chip").returncode == 0
    _, flags = geochip_flags(site.calls("python")[0])
    config, _ = parse_run_config(flags, command="chipping", description="")
    script = job_script(config.cluster, "gpu", site.out)
    for line in (
        "-A geospatialworkshop", "-p gpu-a100-mig7", "--cpus-per-task=8", "--mem=24G", "-t 02:30:00",
        "--gres=gpu:a100_1g.10gb:1",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert config.cluster.gpu.python is None


def test_the_gpu_nodes_may_have_another_interface(site):
    site.describe("GEOCHIP_INTERFACE=eth0\nGEOCHIP_GPU_INTERFACE=ib1\n")
    assert site.job("infer").returncode == 0
    _, flags = geochip_flags(site.calls("python")[0])
    assert {"--cluster.cpu.interface=eth0", "--cluster.gpu.interface=ib1"} <= set(flags)
    assert site.job("train", SLURM_JOB_NUM_NODES="2").returncode == 0
    assert site.calls("srun")[0][1]["NCCL_SOCKET_IFNAME"] == "ib1"


def test_workers_are_waited_for_as_long_as_the_driver_may_wait(site):
    site.describe("GEOCHIP_DRIVER_TIME=2-00\n")
    assert site.job("infer").returncode == 0
    assert "--cluster.wait_minutes=1440" in geochip_flags(site.calls("python")[0])[1]
    assert "--cluster.dashboard=true" not in geochip_flags(site.calls("python")[0])[1]
    site.describe("GEOCHIP_KIND=srun\nGEOCHIP_DASHBOARD=yes\n")
    assert site.job("infer").returncode == 0
    assert "wait_minutes" not in str(site.calls("python")[1])
    assert "--cluster.dashboard=true" in geochip_flags(site.calls("python")[1])[1]


def test_a_persons_own_defaults_reach_the_jobs_of_workers_too(site):
    site.describe("GEOCHIP_DIRECTIVES=(--constraint=a100)\n")
    mine = {"SBATCH_RESERVATION": "workshop", "SBATCH_CONSTRAINT": "v100"}
    submitted = site.submitted(**mine)
    for step in STEPS:
        assert {"--reservation=workshop", "--constraint=a100"} <= set(submitted[step])
        assert "--constraint=v100" not in submitted[step]
    _, environment = site.calls("sbatch")[0]
    assert (
        site.job("chip", **{name: environment[name] for name in environment if name.startswith("GEOCHIP_")}).returncode
        == 0
    )
    flags = geochip_flags(site.calls("python")[0])[1]
    assert '--cluster.cpu.directives=["--constraint=a100", "--reservation=workshop"]' in flags


ATLAS = "\n".join(
    line.removeprefix("#") for line in (CLUSTER / "site.env").read_text().splitlines() if line.startswith("#GEOCHIP_")
)


def test_the_examples_of_the_site_file_are_the_tutorials_job(site):
    site.describe(ATLAS.replace("GEOCHIP_SKIP_DIRECTIVES", "#").replace("GEOCHIP_RUN_FILE", "#"))
    submitted = site.submitted()
    assert {
        "--account=geospatialworkshop", "--partition=gpu-a100-mig7", "--gres=gpu:a100_1g.10gb:1", "--cpus-per-task=8",
        "--time=02:30:00", "--nodes=1", "--mem=32G", "--qos=normal", "--reservation=workshop", "--mail-type=FAIL",
    } <= set(submitted["train"])  # fmt: skip
    for step in ("chip", "infer", "evaluate"):
        assert {"--account=geospatialworkshop", "--partition=atlas"} <= set(submitted[step])
        assert not [option for option in submitted[step] if option.startswith("--gres")]


def test_every_variable_is_in_the_site_file_with_an_example(site):
    known = re.search(r"SITE_VARIABLES=\((.*?)\)", (CLUSTER / "lib.sh").read_text(), re.DOTALL)
    assert set(re.findall(r"^#GEOCHIP_(\w+)=", (CLUSTER / "site.env").read_text(), re.MULTILINE)) == set(
        known[1].split()
    )


def test_the_site_file_names_the_defaults_that_count(site):
    text = re.search(r"SITE_DEFAULTS=\((.*?)\)", (CLUSTER / "lib.sh").read_text(), re.DOTALL)
    named = re.findall(r"^#GEOCHIP_(\w+)=.*?  # default: ([\w:]+)", (CLUSTER / "site.env").read_text(), re.MULTILINE)
    assert dict(named) == dict(pair.split("=") for pair in text[1].split())
    assert len(named) == len(dict(named)) >= 13
    # And these are what an empty file gives: as if each had been written into it.
    site.describe("")
    empty = site.submitted()
    (site.bin / "calls").unlink()
    site.describe("".join(f"GEOCHIP_{name}={value}\n" for name, value in named))
    assert site.submitted() == empty


def test_squeue_shows_which_step_a_job_is_of(site):
    names = []
    for arguments in site.submitted().values():
        (name,) = [word.removeprefix("--job-name=") for word in arguments if word.startswith("--job-name=")]
        names.append(name)
    config = parse_run_config(["--cluster.kind=slurm"], command="chipping", description="")[0]
    for jobs in ("cpu", "gpu"):
        names += re.findall(r"^#SBATCH -J (\S+)$", job_script(config.cluster, jobs, "/r"), re.MULTILINE)
    assert [name[:8] for name in names] == ["chip-geo", "train-ge", "infer-ge", "evaluate", "chip-wor", "infer-wo"]
    assert all("geochip" in name for name in names)


REFUSALS = {
    "Invalid account or account/partition combination specified": ["GEOCHIP_ACCOUNT"] * 4,
    "Invalid qos specification": ["GEOCHIP_QOS"] * 4,
    "invalid partition specified: x": [
        "GEOCHIP_DRIVER_PARTITION", "GEOCHIP_GPU_PARTITION", "GEOCHIP_DRIVER_PARTITION", "GEOCHIP_CPU_PARTITION",
    ],
    "Requested time limit is invalid (missing or exceeds some limit)": [
        "GEOCHIP_DRIVER_TIME", "GEOCHIP_GPU_TIME", "GEOCHIP_DRIVER_TIME", "GEOCHIP_CPU_TIME",
    ],
    "Memory specification can not be satisfied": [
        "GEOCHIP_DRIVER_MEMORY", "GEOCHIP_GPU_MEMORY", "GEOCHIP_DRIVER_MEMORY", "GEOCHIP_DRIVER_MEMORY",
    ],
    "unrecognized option '--nice=x'": ["GEOCHIP_DIRECTIVES"] * 4,
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSALS)
def test_a_refusal_names_the_variable_to_change(site, said):
    for number, (step, variable) in enumerate(zip(STEPS, REFUSALS[said], strict=True), 1):
        (site.bin / "calls").unlink(missing_ok=True)
        site.answer(refused=number, refusal=said)
        done = site.run("pipeline.sh", site.directory / f"out{number}", site.run_file)
        fails(
            done, f"sbatch refused the step {step}", f"; change {variable} in {site.directory}/site.env. What", code=1
        )
        assert said in done.stderr
    told("step_refused", done.stderr)


def test_a_refusal_of_another_kind_names_all_that_it_may_come_from(site):
    site.answer(refused=2, refusal="Requested node configuration is not available")
    done = site.run("pipeline.sh", site.out, site.run_file)
    variables = "GEOCHIP_GPU_PARTITION, GEOCHIP_GPU_MEMORY, GEOCHIP_GPU_TIME, GEOCHIP_GPU_GRES, GEOCHIP_GPU_CORES"
    fails(done, f"GEOCHIP_ACCOUNT, GEOCHIP_QOS, {variables} or GEOCHIP_DIRECTIVES in ", code=1)


def geochip_flags(call):
    arguments, _ = call
    module = arguments.index("-m")
    return arguments[module + 1], arguments[module + 2 :]


def test_the_drivers_flags_are_keys_that_geochip_knows(site, tmp_path):
    text = ATLAS.replace("GEOCHIP_PYTHON=/project/geospatialworkshop/geochip/.venv/bin/python", "GEOCHIP_PYTHON=python")
    text = text.replace('"module load apptainer/1.1.9"', r"""'export A="b c"' 'B=\d' $'if true; then\n\tC=1\nfi'""")
    profiles = tmp_path / "my profiles.yaml"
    profiles.write_text((CLUSTER / "jobqueue.yaml").read_text())
    site.describe(text.replace("/home/me/geochip/cluster/jobqueue.yaml", f"'{profiles}'"))
    assert site.job("chip").returncode == 0
    module, flags = geochip_flags(site.calls("python")[0])
    assert module == "geochip.chipping"
    config, _ = parse_run_config(flags, command="chipping", description="")
    assert config.run_dir == str(site.out)
    cluster = config.cluster
    assert (cluster.kind, cluster.workers, cluster.wait_minutes) == ("slurm", 4, 240)
    assert (cluster.profiles, cluster.scheduler_interface) == (str(profiles), "ib0")
    for jobs, name in ((cluster.cpu, "cpu"), (cluster.gpu, "gpu")):
        assert (jobs.profile, jobs.account, jobs.qos) == (f"geochip-{name}", "geospatialworkshop", "normal")
        assert (jobs.interface, jobs.local_directory, jobs.log_directory) == ("ib0", "/tmp", f"{site.out}/logs")
        assert tuple(jobs.prologue) == ('export A="b c"', r"B=\d", "if true; then\n\tC=1\nfi")
        assert tuple(jobs.directives) == ("--reservation=workshop", "--mail-type=FAIL")
        assert tuple(jobs.skip_directives) == ("--mem",)
        image = "/project/geospatialworkshop/geochip/geochip.sif"
        binds = f"{site.out},/reference/workshops/rastervision/input,/90daydata,/tmp"
        assert shlex.split(jobs.python) == ["apptainer", "exec", "--nv", "--bind", binds, image, "python"]
    assert (cluster.cpu.partition, cluster.cpu.cores, cluster.cpu.memory) == ("atlas", 2, "8GiB")
    assert (cluster.cpu.walltime, cluster.cpu.gres) == ("01:00:00", None)
    assert (cluster.gpu.partition, cluster.gpu.cores, cluster.gpu.memory) == ("gpu-a100-mig7", 8, "32GiB")
    assert (cluster.gpu.walltime, cluster.gpu.gres) == ("02:30:00", "gpu:a100_1g.10gb:1")

    assert site.job("infer").returncode == 0
    module, flags = geochip_flags(site.calls("python")[1])
    assert module == "geochip.infer"
    assert parse_run_config(flags, command="infer", description="")[0].cluster.gpu == cluster.gpu
    assert site.job("evaluate").returncode == 0
    module, flags = geochip_flags(site.calls("python")[2])
    assert (module, flags) == ("geochip.evaluate", ["--config", str(site.out / "run.yaml"), "--run_dir", str(site.out)])


def test_paths_with_spaces(tmp_path):
    site = Site(tmp_path / "a place")
    site.out = tmp_path / "my runs" / "it's one"
    site.out.parent.mkdir()
    cluster = tmp_path / "my copy" / "cluster"
    shutil.copytree(CLUSTER, cluster)
    python = site.bin / "the python"
    shutil.copy(site.bin / "python", python)
    site.describe(f"GEOCHIP_PYTHON='{python}'\n")
    done = site.run("pipeline.sh", site.out, site.run_file, cluster=cluster)
    assert (done.returncode, done.stderr) == (0, "")
    arguments, environment = site.calls("sbatch")[0]
    assert arguments[-3:] == [str(cluster / "chip.sbatch"), str(site.out), str(site.out / "run.yaml")]
    assert f"--output={site.out}/logs/chip-%j.out" in arguments
    assert environment["GEOCHIP_CLUSTER_DIR"] == str(cluster)
    # What is printed can be pasted.
    again = re.search(r"Go on: +(.*?)  \(", done.stdout)[1]
    assert shlex.split(again) == [str(cluster / "pipeline.sh"), str(site.out)]
    for step in ("chip", "train"):
        done = site.run(
            f"{step}.sbatch", site.out, site.run_file, cluster=cluster, SLURM_JOB_ID="7", SLURM_JOB_NODELIST="n"
        )
        assert (done.returncode, done.stderr) == (0, "")
    ((chip, _),) = [(call, env) for call, env in site.calls("the python")]
    (launcher,) = [flag for flag in chip if flag.startswith("--cluster.cpu.python=")]
    assert shlex.split(launcher.split("=", 1)[1]) == [str(python)]
    assert f"--cluster.cpu.log_directory={site.out}/logs" in chip
    ((train, _),) = site.calls("srun")
    assert train[train.index("train") + 1] == str(python)
    assert train[-4:] == ["--config", str(site.out / "run.yaml"), "--run_dir", str(site.out)]


@pytest.mark.parametrize("how", ["exported", "record", "submitted from the repository"])
def test_a_batch_script_finds_its_neighbours_from_slurms_copy(site, how, tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "slurm_script").write_bytes((CLUSTER / "evaluate.sbatch").read_bytes())
    environment = {"SLURM_JOB_ID": "7"}
    if how == "exported":
        environment["GEOCHIP_CLUSTER_DIR"] = str(CLUSTER)
    elif how == "record":
        site.answer(job=f"JobId=7 JobState=RUNNING Command={CLUSTER}/evaluate.sbatch {site.out} WorkDir={tmp_path}")
    else:
        environment["SLURM_SUBMIT_DIR"] = str(ROOT)
    done = site.run("slurm_script", site.out, site.run_file, cluster=spool, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert geochip_flags(site.calls("python")[0])[0] == "geochip.evaluate"


def test_a_batch_script_outside_of_a_job_says_how_to_submit_it(site):
    fails(site.run("train.sbatch", site.out, site.run_file), "runs in a Slurm job: sbatch cluster/train.sbatch")
    assert not site.calls("srun")


KINDS = {
    "srun": {
        "chip": ["--ntasks=3", "--cpus-per-task=2", "--mem-per-cpu=1536M", "--time=01:00:00", "--partition=cpus"],
        "infer": [
            "--nodes=2",
            "--ntasks-per-node=1",
            "--cpus-per-task=4",
            "--mem=16G",
            "--time=02:00:00",
            "--gres=gpu:1",
        ],
    },
    "local": {
        "chip": ["--nodes=1", "--ntasks=1", "--cpus-per-task=6", "--mem=9G", "--time=01:00:00", "--partition=cpus"],
        "infer": ["--nodes=1", "--ntasks=1", "--cpus-per-task=4", "--mem=16G", "--time=02:00:00", "--gres=gpu:1"],
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_without_jobs_of_their_own_the_workers_are_in_the_steps_job(site, kind):
    workers = "GEOCHIP_INFER_WORKERS=2\n" if kind == "srun" else ""
    site.describe(
        f"GEOCHIP_KIND={kind}\nGEOCHIP_CHIP_WORKERS=3\n{workers}GEOCHIP_CPU_CORES=2\nGEOCHIP_CPU_MEMORY=3G\n"
        "GEOCHIP_CPU_PARTITION=cpus\nGEOCHIP_GPU_GRES=gpu:1\n"
    )
    submitted = site.submitted()
    for step, options in KINDS[kind].items():
        assert submitted[step][1 : len(options) + 1] == options
    assert site.job("chip").returncode == 0
    _, flags = geochip_flags(site.calls("python")[0])
    assert {f"--cluster.kind={kind}", "--cluster.workers=3"} <= set(flags)
    assert site.job("infer").returncode == 0
    _, flags = geochip_flags(site.calls("python")[1])
    assert f"--cluster.workers={2 if kind == 'srun' else 1}" in flags


def test_on_one_node_everything_runs_in_the_image(site):
    site.describe("GEOCHIP_KIND=local\nGEOCHIP_IMAGE=/images/geochip.sif\n")
    (site.bin / "apptainer").write_bytes((site.bin / "python").read_bytes())
    (site.bin / "apptainer").chmod(0o755)
    for step in STEPS:
        assert site.job(step).returncode == 0
    image = ["exec", "--nv", "--bind", f"{site.out}", "/images/geochip.sif", "python", "-m"]
    assert [call[:7] for call, _ in site.calls("apptainer")] == [image] * 3
    ((train, _),) = site.calls("srun")
    assert train[train.index("train") + 1 :][:8] == ["apptainer", *image]


@pytest.mark.parametrize("kind", ["slurm", "srun"])
def test_options_that_a_site_refuses_are_left_out(site, kind):
    site.describe(f"GEOCHIP_SKIP_DIRECTIVES=(--mem --requeue -t --open-mode=append)\nGEOCHIP_KIND={kind}\n")
    for step, options in site.submitted().items():
        assert not [option for option in options if option.startswith(("--mem", "--requeue", "--time", "--open-mode"))]
        # Nor does the script itself ask for them.
        script = Path(options[-3])
        assert script == site.out / "logs" / f"{step}.sbatch"
        lines, whole = script.read_text().splitlines(), (CLUSTER / script.name).read_text().splitlines()
        assert [line for line in whole if line not in lines] == ["#SBATCH --open-mode=append", "#SBATCH --requeue"]
        assert [line for line in whole if line in lines] == lines


def test_a_list_of_one_word_needs_no_brackets(site):
    site.describe("GEOCHIP_DIRECTIVES='--comment=two words'\nGEOCHIP_SKIP_DIRECTIVES=\n")
    for options in site.submitted().values():
        assert "--comment=two words" in options
        assert "" not in options


def test_sbatchs_options_are_not_for_srun(site):
    lists = "GEOCHIP_DIRECTIVES=(--mail-type=FAIL)\nGEOCHIP_SKIP_DIRECTIVES=(--mem)\n"
    for number, kind in enumerate(("srun", "slurm")):
        site.describe(f"{lists}GEOCHIP_KIND={kind}\n")
        assert site.job("chip").returncode == 0
        _, flags = geochip_flags(site.calls("python")[number])
        assert bool([flag for flag in flags if "directives=" in flag]) == (kind == "slurm")


def test_what_the_image_sees_besides(site):
    cache = site.directory / "cache"
    cache.mkdir()
    for directory, seen in (("/local/scratch", ",/local/scratch"), ("'$TMPDIR/dask'", "")):
        site.describe(
            f"GEOCHIP_IMAGE=/geochip.sif\nGEOCHIP_PYTHON=python\nexport HF_HOME='{cache}'\nGEOCHIP_LOCAL_DIRECTORY={directory}\n"
        )
        assert site.job("train").returncode == 0
        arguments = site.calls("srun")[-1][0]
        assert arguments[arguments.index("--bind") + 1] == f"{site.out}{seen},{cache}"


@pytest.mark.parametrize("script", ["pipeline.sh", "chip.sbatch"])
def test_only_logs_are_for_oneself_alone(site, script):
    before = os.umask(0o022)
    try:
        done = site.run(script, site.out, site.run_file, **({} if script == "pipeline.sh" else {"SLURM_JOB_ID": "7"}))
    finally:
        os.umask(before)
    assert done.returncode == 0
    assert [path.stat().st_mode & 0o777 for path in (site.out, site.out / "logs")] == [0o755, 0o700]


SITE_FAULTS = {
    "GEOCHIP_DASHBOARD=true": "GEOCHIP_DASHBOARD=true is not allowed: must be yes or no",
    "GEOCHIP_KIND=pbs": "GEOCHIP_KIND=pbs is not allowed: must be slurm, srun or local",
    "GEOCHIP_CHIP_WORKERS=0": "GEOCHIP_CHIP_WORKERS=0 is not allowed: must be a whole number, at least 1",
    "GEOCHIP_TRAIN_NODES=two": "GEOCHIP_TRAIN_NODES=two is not allowed: must be a whole number, at least 1",
    "GEOCHIP_MAX_REQUEUES=-1": "GEOCHIP_MAX_REQUEUES=-1 is not allowed: must be a whole number, at least 0",
    "GEOCHIP_GPU_MEMORY=16": "GEOCHIP_GPU_MEMORY=16 is not allowed: must be a whole number with M or G, such as 8G",
    "GEOCHIP_GPU_TIME=9": "GEOCHIP_GPU_TIME=9 is not allowed: must be a time as Slurm writes it (150, 02:30:00 or 1-12), at least 10 minutes, since jobs are told to stop 5 minutes before their end",
    "GEOCHIP_CPU_TIME=1h": "GEOCHIP_CPU_TIME=1h is not allowed",
    "GEOCHIP_ACOUNT=mine": "there is no variable GEOCHIP_ACOUNT; there are GEOCHIP_{ACCOUNT,QOS,",
    "GEOCHIP_ACCOUNT=mine\r\n": "has the line ends of Windows; take them out: dos2unix ",
    "GEOCHIP_DIRECTIVES='--nice --qos=low'": 'GEOCHIP_DIRECTIVES="--nice --qos=low" is one word to bash; in brackets it is a list: GEOCHIP_DIRECTIVES=(--nice --qos=low)',
    "GEOCHIP_SKIP_DIRECTIVES='--mem -t'": "in brackets it is a list: GEOCHIP_SKIP_DIRECTIVES=(--mem -t)",
    "GEOCHIP_BINDS='/data /more'": "in brackets it is a list: GEOCHIP_BINDS=(/data /more)",
    "GEOCHIP_ACCOUNT=$'a\\nb'": r"GEOCHIP_ACCOUNT=$'a\nb' is not allowed: must be one line of text, without line breaks or other control",
    "GEOCHIP_DIRECTIVES=(--nice $'--comment=a\\rb')": r"GEOCHIP_DIRECTIVES=$'--comment=a\rb' is not allowed: must be one line",
    "GEOCHIP_PROLOGUE=($'a\\nb' $'a\\eb')": r"GEOCHIP_PROLOGUE=$'a\Eb' is not allowed: must be one line of text",
    "GEOCHIP_ACCOUNT=(mine": "bash cannot read it, for the reason above; write NAME=value",
    "GEOCHIP_IMAGE=a.sif": "GEOCHIP_IMAGE with GEOCHIP_KIND=slurm needs GEOCHIP_PYTHON as well, a Python outside of the image",
    "GEOCHIP_KIND=local GEOCHIP_GPU_GRES=gpu:2 GEOCHIP_INFER_WORKERS=2": "GEOCHIP_INFER_WORKERS=2 is not allowed with GEOCHIP_KIND=local",
    "GEOCHIP_GPU_GRES=gpu:a100_1g.10gb:2": "GEOCHIP_GPU_GRES=gpu:a100_1g.10gb:2 is a MIG slice, and one slice is one rank: slices cannot add up their gradients (NCCL refuses), so 1 x 2 = 2 ranks cannot train together",
    "GEOCHIP_GPU_GRES=gpu:a100_1g.10gb:1 GEOCHIP_TRAIN_NODES=2": "so 2 x 1 = 2 ranks cannot train together; ask for one slice",
    "GEOCHIP_GPU_GRES=gpu:a100_3g.20gb GEOCHIP_TRAIN_RANKS=2": "so 1 x 2 = 2 ranks cannot train together",
}


@pytest.mark.parametrize("text", SITE_FAULTS)
def test_a_faulty_site_file_is_refused_before_anything_is_submitted(site, text):
    site.describe(text)
    fails(site.run("pipeline.sh", site.out, site.run_file), SITE_FAULTS[text])
    assert not site.calls("sbatch")
    assert not site.out.exists()


def test_other_faults_are_refused_before_anything_is_submitted(site):
    fails(site.run("pipeline.sh", site.out, GEOCHIP_SITE="/nowhere/site.env"), "/nowhere/site.env cannot be read")
    fails(site.run("pipeline.sh", site.out), f"no run file: name one after {site.out}")
    fails(site.run("pipeline.sh", site.out, "none.yaml"), f"{site.directory}/none.yaml: there is no such run file")
    fails(site.run("pipeline.sh", "100%", site.run_file), "100%: Slurm's log files cannot be in a directory with %")
    fails(site.run("pipeline.sh", "a\nb", site.run_file), r"a\nb' has a line break or another control character in its")
    fails(
        site.run("pipeline.sh", "--steps=chip,tain", site.out),
        "--steps: there is no step tain; there are chip,train,infer",
    )
    (site.bin / "sbatch").unlink()
    # The path of this machine may hold a real one.
    for name in ("bash", "dirname", "readlink", "sed", "cat", "id", "grep"):
        (site.bin / name).symlink_to(shutil.which(name))
    fails(
        site.run("pipeline.sh", site.out, site.run_file, PATH=str(site.bin)),
        "there is no sbatch here: run this on a login node",
    )
    assert not site.calls("sbatch")
    assert not site.out.exists()


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [("150", 9000), ("20:30", 1230), ("02:30:00", 9000), ("1-12", 129600), ("1-12:30", 131400), ("1-00:00:09", 86409),
     ("08:09:08", 29348), ("1h", 0), ("", 0), ("-3", 0)],
)  # fmt: skip
def test_walltimes_are_read_as_slurm_does(site, walltime, seconds):
    done = subprocess.run(
        ["bash", "-c", '. "$1" && seconds_of "$2"', "-", CLUSTER / "lib.sh", walltime], capture_output=True, text=True,
        timeout=20, check=True,
    )  # fmt: skip
    assert done.stdout == f"{seconds}\n"


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("", 1),
        ("gpu", 1),
        ("gpu:4", 4),
        ("gpu:a100", 1),
        ("gpu:a100:2", 2),
        ("gpu:a100_1g.10gb:1", 1),
        ("lscratch:20,gpu:2", 2),
    ],
)
def test_there_is_a_rank_for_each_gpu(site, gres, gpus):
    site.describe(f"GEOCHIP_GPU_GRES={gres}\n")
    assert site.job("train").returncode == 0
    ((arguments, _),) = site.calls("srun")
    started = [word for word in arguments if word.startswith("--nproc-per-node=")]
    assert started == ([f"--nproc-per-node={gpus}"] if gpus > 1 else [])


def test_an_earlier_run_is_gone_on_with_and_never_overwritten(site):
    site.submitted()
    site.answer(queued=[55, 103])
    fails(
        site.run("pipeline.sh", site.out),
        f"{site.out}: jobs of this run are in the queue: 103; wait for them (squeue --jobs=103), or end them (scancel 103)",
    )
    site.answer(queued=[55])
    other = site.directory / "other.yaml"
    other.write_text("train:\n  epochs: 2\n")
    fails(
        site.run("pipeline.sh", site.out, other),
        f"{site.out} was begun with another run file: {site.out}/run.yaml differs from {other}",
    )
    assert len(site.calls("sbatch")) == 4
    done = site.run("pipeline.sh", site.out)
    assert (done.returncode, done.stderr) == (0, "")
    assert site.calls("sbatch")[-1][0][-1] == str(site.out / "run.yaml")
    assert (site.out / "run.yaml").read_text() == site.run_file.read_text()


def test_nothing_is_submitted_while_it_is_not_known_what_is_queued(site):
    site.submitted()
    site.answer(silent={"squeue": [1]})
    fails(
        site.run("pipeline.sh", site.out), "Unable to contact slurm controller",
        f"{site.out}: whether jobs of this run are in the queue is not known, since squeue failed", code=1,
    )  # fmt: skip
    assert len(site.calls("sbatch")) == 4


def test_all_jobs_of_a_run_are_remembered(site):
    site.submitted()
    assert site.run("pipeline.sh", "--steps=evaluate", site.out).returncode == 0
    site.answer(queued=[102])
    fails(site.run("pipeline.sh", site.out), "jobs of this run are in the queue: 102;")


def test_steps_that_are_left_out_are_named(site):
    done = site.run("pipeline.sh", "--steps=infer,train", site.out, site.run_file)
    assert done.returncode == 0
    assert [call[-3] for call, _ in site.calls("sbatch")] == [
        str(CLUSTER / f"{step}.sbatch") for step in ("train", "infer")
    ]
    assert "--dependency=afterok:101" in site.calls("sbatch")[1][0]
    for step in ("chip", "evaluate"):
        assert re.search(rf"^{step} +not submitted: not in --steps$", done.stdout, re.MULTILINE)


def test_dry_run_prints_the_commands_and_does_nothing(site):
    done = site.run("pipeline.sh", "--dry-run", site.out, site.run_file)
    assert (done.returncode, done.stderr) == (0, "")
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("sbatch")]
    assert not site.calls("sbatch")
    assert not site.out.exists()
    printed = [
        [re.sub(r"<(\w+)>", lambda step: str(101 + STEPS.index(step[1])), word) for word in words] for words in commands
    ]
    assert printed == [["sbatch", *arguments] for arguments in site.submitted().values()]


def test_when_a_step_is_refused_nothing_stays_in_the_queue(site):
    site.answer(refused=3)
    done = site.run("pipeline.sh", site.out, site.run_file)
    assert "sbatch: error: Batch job submission failed: Invalid account" in done.stderr
    fails(done, "sbatch refused the step infer, for the reason above", "--job-name=infer-geochip", code=1)
    assert [arguments for arguments, _ in site.calls("scancel")] == [["101", "102"]]


def test_a_surrounding_job_does_not_shape_the_new_ones(site):
    site.submitted(SLURM_JOB_ID="5", SLURM_CPU_BIND="0x1", SBATCH_PARTITION="debug", SLURM_CONF="/etc/slurm.conf")
    for _, environment in site.calls("sbatch"):
        assert {name for name in environment if name.startswith(("SLURM", "SBATCH"))} == {"SLURM_CONF"}


def test_ones_own_defaults_for_sbatch_count_on_a_login_node(site):
    defaults = {"SBATCH_ACCOUNT": "mine", "SBATCH_PARTITION": "p", "SBATCH_QOS": "q", "SBATCH_CONSTRAINT": "x"}
    for options in site.submitted(**defaults).values():
        assert {"--account=mine", "--partition=p", "--qos=q"} <= set(options)
    environment = site.calls("sbatch")[0][1]
    assert environment["SBATCH_CONSTRAINT"] == "x"
    # The jobs of workers, which the driver submits from inside its own job, get them too.
    assert site.job("chip", **environment).returncode == 0
    _, flags = geochip_flags(site.calls("python")[0])
    assert {
        f"--cluster.{one}.{key}" for one in ("cpu", "gpu") for key in ("account=mine", "partition=p", "qos=q")
    } <= set(flags)
    # What the site's file says goes first.
    site.describe("GEOCHIP_ACCOUNT=other\n")
    assert site.run("pipeline.sh", site.out, **defaults).returncode == 0
    assert "--account=other" in site.calls("sbatch")[-1][0]


def test_how_training_is_started(site):
    site.describe("GEOCHIP_GPU_GRES=gpu:2\nGEOCHIP_TRAIN_NODES=2\nGEOCHIP_INTERFACE=ib0\n")
    (site.out / "train").mkdir(parents=True)
    for name in ("stop", "interrupted"):
        (site.out / "train" / name).touch()
    done = site.job("train", SLURM_JOB_ID="123456", SLURM_JOB_NUM_NODES="2", SLURM_CPUS_PER_TASK="8")
    assert (done.returncode, done.stderr) == (0, "")
    ((arguments, environment),) = site.calls("srun")
    assert arguments == [
        "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=8", "--kill-on-bad-exit=1",
        "bash", "-c", 'trap "" USR2; export PET_NODE_RANK="$SLURM_NODEID"; exec "$@"', "train",
        "python", "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2",
        "--rdzv-backend=static", "--rdzv-id=123456", "--master-addr=node1", "--master-port=13456",
        "-m", "geochip.train_ddp", "--config", str(site.out / "run.yaml"), "--run_dir", str(site.out),
    ]  # fmt: skip
    assert environment["OMP_NUM_THREADS"] == "4"
    assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"] == "ib0"
    # A request to stop, and its answer, were another training's.
    assert not list((site.out / "train").iterdir())


def test_where_ranks_meet(site):
    """On the first node that Slurm names; those of one node stay on it, and one process needs no torchrun at all."""
    assert site.job("train", SLURM_JOB_NUM_NODES="1").returncode == 0
    site.describe("GEOCHIP_TRAIN_RANKS=2\nGEOCHIP_GPU_INTERFACE=ib0\n")
    assert site.job("train", SLURM_JOB_NUM_NODES="1").returncode == 0
    site.describe("")
    assert site.job("train", SLURM_JOB_NUM_NODES="2").returncode == 0
    (alone, _), (one, environment), (several, _) = site.calls("srun")
    assert alone[alone.index("train") :][:4] == ["train", "python", "-m", "geochip.train_ddp"]
    assert ("--nnodes=1" in one, "--master-addr=localhost" in one) == (True, True)
    assert "GLOO_SOCKET_IFNAME" not in environment
    assert ("--nnodes=2" in several, "--master-addr=node1" in several) == (True, True)
    for arguments in (one, several):
        assert "--rdzv-backend=static" in arguments
        # What torchrun makes of a static rendezvous without one is not static.
        assert "--master-port=10007" in arguments
    node = [*one[one.index("bash") :][:3], "train", "sh", "-c", "echo $PET_NODE_RANK"]
    done = subprocess.run(
        node, env={**site.environment, "SLURM_NODEID": "1"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


def test_a_port_that_is_taken_is_not_where_ranks_meet(site):
    with socket.socket() as taken:
        for port in range(10100, 19000, 7):
            with contextlib.suppress(OSError):
                taken.bind(("127.0.0.1", port))
                break
        taken.listen()
        assert site.job("train", SLURM_JOB_NUM_NODES="2", SLURM_JOB_ID=str(port - 10000)).returncode == 0
    ((arguments, _),) = site.calls("srun")
    (given,) = [word for word in arguments if word.startswith("--master-port=")]
    assert int(given.rpartition("=")[2]) > port


def test_ranks_are_as_many_as_the_gpus_that_the_job_was_given(site):
    assert site.job("train", SLURM_GPUS_ON_NODE="2").returncode == 0
    assert "--nproc-per-node=2" in site.calls("srun")[0][0]
    site.describe("GEOCHIP_GPU_GRES=gpu:4\n")
    assert site.job("train", SLURM_GPUS_ON_NODE="2").returncode == 0
    assert "--nproc-per-node=2" in site.calls("srun")[1][0]
    site.describe("GEOCHIP_TRAIN_RANKS=1\n")
    assert site.job("train", SLURM_GPUS_ON_NODE="2").returncode == 0
    assert "torch.distributed.run" not in site.calls("srun")[2][0]
    site.describe("GEOCHIP_TRAIN_RANKS=3\n")
    fails(
        site.job("train", SLURM_GPUS_ON_NODE="2"),
        "GEOCHIP_TRAIN_RANKS=3 is more than the GPUs that this job has on a node, 2; lower it, leave it out",
    )
    assert len(site.calls("srun")) == 3


@pytest.mark.parametrize("devices", ["MIG-1c2b8e5f-0000-5a1d-9c8e-2f0c3a4b5d6e", "MIG-GPU-1/7/0,MIG-GPU-1/8/0"])
def test_more_ranks_than_one_on_slices_are_refused_in_the_job_as_well(site, devices):
    site.describe("GEOCHIP_TRAIN_RANKS=2\n")
    fails(
        site.job("train", CUDA_VISIBLE_DEVICES=devices), "the GPU of this job is a MIG slice, and one slice is one rank"
    )
    assert not site.calls("srun")
    site.describe("GEOCHIP_TRAIN_RANKS=1\n")
    assert site.job("train", CUDA_VISIBLE_DEVICES=devices).returncode == 0


def test_slices_of_other_jobs_are_none_of_this_jobs(site):
    """Where devices are not fenced off, the driver shows all of a node that has whole GPUs and slices."""
    (site.bin / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'GPU 0: A100'; echo '  MIG 1g.10gb Device 0: (UUID: MIG-1)'\n"
    )
    (site.bin / "nvidia-smi").chmod(0o755)
    site.describe("GEOCHIP_TRAIN_RANKS=2\n")
    assert site.job("train", CUDA_VISIBLE_DEVICES="2,3").returncode == 0
    fails(site.job("train"), "the GPU of this job is a MIG slice, and one slice is one rank")


def test_a_training_that_saved_is_put_back_into_the_queue(site):
    site.answer(exit=1, makes=[str(site.out / "train" / "interrupted")])
    done = site.job("train", SLURM_RESTART_COUNT="9")
    assert (done.returncode, done.stderr) == (0, "")
    assert "interrupted by SIGUSR2 in epoch 2 of 3, after 5 of 80 steps; put back into the queue" in done.stdout
    assert "(restart 10 of at most 10)" in done.stdout
    assert [call for call, _ in site.calls("scontrol")][-1] == ["requeue", "7"]


@pytest.mark.parametrize(
    ("step", "program", "finished"), [("chip", "python", False), ("train", "srun", False), ("chip", "python", True)]
)
def test_told_to_stop_a_job_stops_its_work_and_goes_back_into_the_queue(site, step, program, finished):
    """Unless it was just finished: then those that wait for it may start."""
    # Of a driver by SIGINT; of a training by its file, which reaches all nodes.
    never, stop = str(site.directory / "never"), str(site.out / "train" / "stop")
    site.answer(
        exit=1, makes=[str(site.out / "train" / "interrupted")], until=stop if step == "train" else never,
        interrupted=0 if finished else 130,
    )  # fmt: skip
    environment = {**site.environment, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1"}
    with subprocess.Popen(
        ["bash", CLUSTER / f"{step}.sbatch", site.out, site.run_file], env=environment, cwd=site.directory,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as script:  # fmt: skip
        end = time.monotonic() + 60
        while not site.calls(program):
            assert time.monotonic() < end
            time.sleep(0.05)
        script.send_signal(signal.SIGUSR2)
        text = script.communicate(timeout=60)[0]
    assert script.returncode == 0, text
    assert "told to stop" in text
    if finished:
        assert "put back" not in text
        assert "requeue" not in [call[0] for call, _ in site.calls("scontrol")]
    else:
        assert "put back into the queue, to go on from here (restart 1 of at most 10)" in text
        assert [call for call, _ in site.calls("scontrol")][-1] == ["requeue", "7"]


@pytest.mark.parametrize(
    ("answers", "environment", "text"),
    [
        ({"makes": ["{out}/train/interrupted"]}, {"SLURM_RESTART_COUNT": "10"}, "not put back into the queue a further time, after 10 (GEOCHIP_MAX_REQUEUES=10); submitted again it goes on"),
        (
            {"makes": ["{out}/train/interrupted"], "job": "JobId=7 JobState=CANCELLED Command=x"}, {},
            "not put back into the queue from here, since Slurm is ending the job (CANCELLED) and decides on that; submitted again",
        ),
        ({}, {}, None),
    ],
    ids=["too often", "cancelled", "failed"],
)  # fmt: skip
def test_a_training_that_must_not_come_back_ends_with_an_error(site, answers, environment, text):
    site.answer(exit=1, **{**answers, "makes": [path.format(out=site.out) for path in answers.get("makes", [])]})
    done = site.job("train", **environment)
    assert done.returncode == 1
    if text:
        fails(done, text, code=1)
    assert not [call for call, _ in site.calls("scontrol") if call[0] == "requeue"]


def test_a_controller_that_does_not_answer_for_a_while_is_asked_again(site):
    saved = {"exit": 1, "makes": [str(site.out / "train" / "interrupted")]}
    # The first call looks for lib.sh.
    site.answer(**saved, silent={"scontrol": [1, 2, 3, 5]})
    done = site.job("train")
    assert done.returncode == 0, done.stderr
    assert [call[0] for call, _ in site.calls("scontrol")] == ["show"] * 4 + ["requeue"] * 2
    assert len(site.calls("sleep")) == 3


def test_a_controller_that_does_not_answer_at_all_is_told(site):
    site.answer(exit=1, makes=[str(site.out / "train" / "interrupted")], silent={"scontrol": list(range(1, 50))})
    fails(
        site.job("train"), "Unable to contact slurm controller",
        "after 5 of 80 steps; not put back into the queue, since Slurm does not say how the job is", "submitted again it goes on",
        code=1,
    )  # fmt: skip
    assert sum(int(arguments[0]) for arguments, _ in site.calls("sleep")) == 120


def test_a_prologue_that_fails_ends_the_job_with_its_line(site):
    site.describe("GEOCHIP_PROLOGUE=('echo loaded $UNSET' 'module load nothing/9')\n")
    done = site.job("evaluate")
    assert done.returncode == 1
    assert "loaded" in done.stdout
    assert "GEOCHIP_PROLOGUE: this line of site.env failed" in done.stderr
    assert "module load nothing/9" in done.stderr
    assert not site.calls("python")


def test_the_doctor_gets_the_same_flags(site):
    done = site.run("pipeline.sh", "--doctor", site.out, site.run_file)
    assert (done.returncode, done.stderr) == (0, "")
    assert not site.out.exists()
    assert site.job("chip").returncode == 0
    (module, flags), (_, chip_flags) = map(geochip_flags, site.calls("python"))
    assert (module, flags[2:]) == ("geochip.doctor", chip_flags[2:])
    assert (flags[:2], chip_flags[:2]) == (["--config", str(site.run_file)], ["--config", str(site.out / "run.yaml")])


def test_how_the_doctor_looks_is_passed_on(site):
    # Before or after the directory, with or without its own name.
    for options in (["--doctor", "--wait", site.out], [site.out, "--doctor", "--wait"], ["--wait", site.out]):
        assert site.run("pipeline.sh", *options, site.run_file).returncode == 0
        assert geochip_flags(site.calls("python")[-1])[1][-1] == "--wait"
    assert site.run("pipeline.sh", "--no-probe", site.out, site.run_file).returncode == 0
    assert geochip_flags(site.calls("python")[-1])[1][-1] == "--no_probe"
    assert not [call for call, _ in site.calls("sbatch") if "--test-only" not in call]


def test_the_doctor_runs_where_the_driver_does(site):
    """Outside of the image; and what is bound is there as long as it looks."""
    site.describe("GEOCHIP_IMAGE=/images/geochip.sif\nGEOCHIP_PYTHON=python\n")
    seen = site.directory / "seen"
    site.answer(until=str(seen))
    with subprocess.Popen(
        ["bash", CLUSTER / "pipeline.sh", "--doctor", site.out / "one", site.run_file], env=site.environment,
        cwd=site.directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as doctor:  # fmt: skip
        end = time.monotonic() + 60
        while not site.calls("python"):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert (site.out / "one").is_dir()
        seen.touch()
        doctor.communicate(timeout=60)
    assert doctor.returncode == 0
    module, flags = geochip_flags(site.calls("python")[0])
    assert module == "geochip.doctor"
    assert f"--cluster.cpu.python=apptainer exec --nv --bind {site.out}/one," in " ".join(flags).replace("\\", "")
    assert not site.out.exists()


def test_the_doctor_asks_slurm_for_the_jobs_of_the_steps(site):
    site.describe("GEOCHIP_SKIP_DIRECTIVES=(--requeue)\n")
    site.answer(refused=2)
    done = site.run("pipeline.sh", "--doctor", site.out, site.run_file, SLURM_CPU_BIND="0x1", SLURM_JOB_ID="5")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line[:5] for line in lines] == ["ok   ", "FAIL ", "ok   ", "ok   "]
    assert (
        lines[0]
        == "ok   chip step: Slurm takes its job: Job 9 to start at 2026-03-01T14:00:00 using 1 processors on nodes node1"
    )
    assert lines[1].startswith(
        f"FAIL train step: Slurm refuses its job: allocation failure: Invalid account; change GEOCHIP_ACCOUNT in {site.directory}/site.env. What it was asked: sbatch --nodes=1"
    )
    assert "a run would fail all the same: see the lines above that begin with FAIL and name a step" in done.stderr
    assert not site.out.exists()
    asked = site.calls("sbatch")
    assert geochip_flags(site.calls("python")[0])[0] == "geochip.doctor"
    assert [set(environment) & {"SLURM_CPU_BIND", "SLURM_JOB_ID"} for _, environment in asked] == [set()] * 4
    assert "#SBATCH --requeue" not in (site.bin / "script1").read_text()
    assert "#SBATCH --open-mode=append" in (site.bin / "script1").read_text()
    # The same that are submitted, but for what waits for another job.
    site.answer()
    assert site.run("pipeline.sh", site.out, site.run_file).returncode == 0
    for (tested, _), (submitted, _) in zip(asked, site.calls("sbatch")[4:], strict=True):
        assert tested[1:] == [
            word for word in submitted[1:-3] if not word.startswith(("--dependency", "--kill-on-invalid-dep"))
        ]


def test_the_doctor_knows_how_long_jobs_may_take(site):
    """Some Slurms take a job that asks for more, and never start it."""
    site.describe("GEOCHIP_GPU_PARTITION=gpu\n")
    site.answer(
        partitions="PartitionName=gpu Default=NO MaxTime=01:00:00 State=UP\nPartitionName=cpu Default=YES MaxTime=1-00:00:00 State=UP\n"
        "PartitionName=gpus Default=NO MaxTime=UNLIMITED State=UP"
    )
    done = site.run("pipeline.sh", "--doctor", site.out, site.run_file)
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("FAIL")] == [
        f"FAIL train step: --time=02:00:00 is more than gpu allows, 60 minutes; lower GEOCHIP_GPU_TIME in {site.directory}/site.env"
    ]


@pytest.mark.parametrize("kind", ["srun", "local"])
def test_the_doctor_does_not_take_a_login_node_for_a_node(site, kind):
    site.describe(f"GEOCHIP_KIND={kind}\nGEOCHIP_GPU_PARTITION=gpu\nGEOCHIP_ACCOUNT=mine\n")
    done = site.run("pipeline.sh", "--doctor", site.out, site.run_file)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(site.calls("sbatch")) == 4
    # With srun it knows itself what it cannot see from here.
    assert len(site.calls("python")) == (1 if kind == "srun" else 0)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("warn node: ")]
    words = shlex.split(line.split("to look from there: ")[1])
    assert {"sbatch", "--partition=gpu", "--account=mine", "--nodes=1", "--output=geochip-doctor-%j.out"} <= set(words)
    inside = shlex.split(words[-1].removeprefix("--wrap="))
    assert inside == [str(CLUSTER / "pipeline.sh"), "--doctor", str(site.out), str(site.run_file)]
    done = site.run(*("pipeline.sh", *inside[1:]), SLURM_JOB_ID="7")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert geochip_flags(site.calls("python")[-1])[0] == "geochip.doctor"
    assert len(site.calls("sbatch")) == 4


def test_the_profiles_are_the_tutorials_job():
    profiles = yaml.safe_load((CLUSTER / "jobqueue.yaml").read_text())["jobqueue"]
    assert set(profiles) == {"geochip-cpu", "geochip-tutorial", "geochip-gpu"}
    # Its header: -A, -p, --gres, -n 4 --cpus-per-task 2, --mem=256gb (of 1024), -t 150; and what it loads.
    assert profiles["geochip-tutorial"] == {
        "account": "geospatialworkshop", "queue": "gpu-a100-mig7", "cores": 4 * 2, "memory": "256GiB",
        "walltime": "02:30:00", "job_extra_directives": ["--gres=gpu:a100_1g.10gb:1"],
        "job_script_prologue": ["module load apptainer/1.1.9"],
    }  # fmt: skip
    assert profiles["geochip-gpu"] == {**profiles["geochip-tutorial"], "memory": "32GiB"}
    # Decimal units are rounded down by Slurm; and a walltime without quotes is a number to YAML.
    for profile in profiles.values():
        assert profile["memory"].endswith("GiB")
        assert isinstance(profile["walltime"], str)


@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    os.environ.get("GEOCHIP_CHECK_DEFINITION") != "1",
    reason="installs all that geochip needs from Debian and PyPI, some GB: GEOCHIP_CHECK_DEFINITION=1 asks for it",
)
def test_the_container_definition_builds_in_a_fresh_debian(tmp_path):
    done = subprocess.run(
        [CLUSTER / "dev" / "check_definition.sh", tmp_path / "built"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert done.stdout.endswith("check_definition.sh: all of it went through\n")
    assert not (tmp_path / "built").exists()


def test_the_container_definition_installs_what_was_tested():
    sections = re.split(r"^%(\w+)\n", (CLUSTER / "geochip.def").read_text(), flags=re.MULTILINE)
    body = dict(zip(sections[1::2], sections[2::2], strict=True))
    copied = [line.split() for line in body["files"].strip().splitlines()]
    assert all((ROOT / source).exists() for source, _ in copied)
    # Whatever pyproject.toml needs for a build is there.
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "src"} == {source for source, _ in copied}
    assert "--constraint /opt/geochip/constraints.txt /opt/geochip\n" in body["post"]
    assert "Bootstrap: docker\nFrom: python:3.11-" in sections[0]
    assert "export PYTHONNOUSERSITE=1" in body["environment"]
    assert subprocess.run(["bash", "-n"], input=body["post"], text=True, check=False, timeout=20).returncode == 0
