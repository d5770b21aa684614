"""Values of a run file that go into the scripts of jobs: none adds a line to them, or runs as a command."""

import json
import subprocess
import sys

import pytest

from geochip.cluster import job_script
from geochip.cluster._srun import worker_script
from geochip.config import ClusterConfig, SlurmJobConfig
from geochip.errors import InputError
from geochip.run_file import parse_run_config
from told import told

BREAKS = ("a\nb", "a\rb", "a\x00b", "a\x1bb", "a\x7fb", "a\x85b", "a\u2028b")
WORDS = ("account", "partition", "qos", "gres", "profile", "interface")
LINES = ("local_directory", "log_directory", "python")
# What a shell would do something about.
HOSTILE = (
    "$(touch HERE)", "`touch HERE`", "';touch HERE;'", '";touch HERE;"', "x;touch HERE", "x&&touch HERE", "x|touch HERE",
    "x>HERE", "$[1]$((1))", "\\", "\\\\$(touch HERE)", "\\`touch HERE`", "!x", "*", "#x", "${x:=`touch HERE`}",
)  # fmt: skip


def refused(*flags):
    with pytest.raises(InputError) as error:
        parse_run_config(flags, command="chipping", description="")
    assert error.value.exit_code == 2
    return str(error.value)


@pytest.mark.parametrize("text", BREAKS)
def test_no_value_has_a_line_break_or_another_control_character(tmp_path, text):
    file = tmp_path / "run.yaml"
    for key in ("run_dir", *(f"cluster.{jobs}.{name}" for jobs in ("cpu", "gpu") for name in (*WORDS, *LINES))):
        section, value = {}, text
        for name in reversed(key.split(".")):
            value = {name: value}
        section |= value
        file.write_text(json.dumps(section))  # which is YAML
        said = refused(f"--config={file}")
        assert said.startswith(f"{key}: {text!r} is not allowed: ")
        assert len(said.splitlines()) == 1
        if key.rsplit(".", 1)[-1] in LINES and "\0" not in text:
            told("not_one_line", said)
    for name, value, allowed in (
        ("directives", [f"--comment={text}"], "must be options of sbatch, each in one line"),
        ("skip_directives", [text], "must be names of directives"),
        ("prologue", [text.replace("\n", "\x08")], "must be lines of a shell script, without control characters"),
    ):
        file.write_text(json.dumps({"cluster": {"cpu": {name: value}}}))
        if "\0" in str(value[0]):
            # Which no text of a run file may hold.
            allowed = "must be a list of names; a text must not hold a NUL character"
        elif name != "prologue":
            allowed += ", such as --constraint=a100" if name == "directives" else ", such as --mem"
        assert refused(f"--config={file}") == f"cluster.cpu.{name}: {value!r} is not allowed: {allowed}"


def test_a_name_that_is_no_utf8_is_none_for_a_job():
    said = refused("--run_dir=/scratch/\udcff")
    assert said == r"run_dir: '/scratch/\udcff' is not allowed: must be text; a text must be text that UTF-8 can hold"
    with pytest.raises(InputError, match="must be one line of text"):
        ClusterConfig(cpu=SlurmJobConfig(log_directory="/scratch/\udcff"))


def test_a_directive_whose_quotes_do_not_close_is_refused():
    assert "cluster.cpu.directives" in refused("""--cluster.cpu.directives=["--comment='it"]""")
    SlurmJobConfig(directives=('--comment="it is"',))


@pytest.mark.parametrize("name", ["eth0 ib0", "ib0;touch", "$(x)", "ib0'", "ib0|x", "ib0>x", "a/b", ""])
def test_an_interface_is_a_name(name):
    with pytest.raises(InputError, match=r"cluster\.gpu\.interface: .* must be the name of a network interface"):
        ClusterConfig(gpu=SlurmJobConfig(interface=name))


@pytest.mark.parametrize("name", ["ib0", "enp1s0f0np0", "bond0.100", "eth0:1", "br-1a2b", "wg_0"])
def test_what_interfaces_are_called(name, tmp_path):
    assert f"--interface {name}\n" in slurm_script(tmp_path, interface=name).replace(" --", "\n--")


def slurm_script(run_dir, profiles=None, **keys):
    config = SlurmJobConfig(**keys)
    return job_script(ClusterConfig(kind="slurm", profiles=profiles, cpu=config), "cpu", run_dir)


def srun_script(_run_dir, **keys):
    return worker_script(SlurmJobConfig(**keys), "cluster.cpu", "tls://10.0.0.1:7", 2, None)


def words_of_the_worker(script, tmp_path):
    """What a shell hands to the Python of a worker, and whether it did anything else."""
    place = tmp_path / "place"
    place.mkdir(exist_ok=True)
    environ = {
        "PATH": "/usr/bin:/bin",
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "0",
        "TMPDIR": "/t x",
    }
    done = subprocess.run(["bash", "-c", script], cwd=place, capture_output=True, text=True, env=environ, check=False)
    assert not list(place.iterdir()), script
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("script_of", [slurm_script, srun_script])
@pytest.mark.parametrize("text", [*HOSTILE, "two words", "$TMPDIR/dask", "${TMPDIR}x"])
def test_a_local_directory_is_one_word_in_which_nothing_runs(tmp_path, script_of, text):
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv))\n")
    python.chmod(0o755)
    script = script_of(tmp_path / "it's a run", local_directory=text, python=f"'{python}'")
    harmless = script_of(tmp_path / "it's a run", local_directory="x", python=f"'{python}'")
    assert len(script.splitlines()) == len(harmless.splitlines())
    words = words_of_the_worker(script.replace("--tls-ca-file ... --tls-cert ... --tls-key ...", ""), tmp_path)
    expected = text.replace("${TMPDIR}", "/t x").replace("$TMPDIR", "/t x")
    assert words[words.index("--local-directory") + 1] == expected


def test_a_run_begun_in_a_directory_with_a_line_break_is_refused(tmp_path, monkeypatch):
    place = tmp_path / "a\n#SBATCH --wrap=id"
    place.mkdir()
    monkeypatch.chdir(place)
    with pytest.raises(InputError) as error:
        slurm_script("run")
    told("logs_cannot_be_there", str(error.value))
    assert "\n" not in str(error.value)


def test_so_is_a_log_directory_by_a_variable_with_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WHERE", "/a\nb")
    with pytest.raises(InputError, match="control character; name another log_directory"):
        slurm_script(tmp_path, log_directory="$WHERE/logs")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("queue", "a\ntouch HERE"), ("account", "a\rb"), ("interface", "ib0\nx"), ("local-directory", "/a\nb"),
        ("job-extra-directives", ["--comment=a\nb"]), ("job_extra_directives", {"--comment": "a\nb"}),
        ("worker-extra-args", ["--x\ntouch HERE"]), ("job-extra", ["--comment=a\nb"]), ("walltime", "01:00:00\n"),
    ],
)  # fmt: skip
def test_so_are_profiles(tmp_path, field, value):
    file = tmp_path / "jobqueue.yaml"
    file.write_text(json.dumps({"jobqueue": {"slurm": {field: value}}}))
    with pytest.raises(InputError) as error:
        slurm_script(tmp_path, profiles=str(file))
    told("profile_not_one_line", str(error.value))
    assert f"cluster.cpu.profile: slurm in {file} has " in str(error.value)


def test_a_profiles_prologue_may_have_lines_and_its_interface_is_a_word(tmp_path):
    file = tmp_path / "jobqueue.yaml"
    prologue = "if true; then\n  module load gdal\nfi\n"
    file.write_text(
        json.dumps({"jobqueue": {"slurm": {"job-script-prologue": [prologue], "interface": "ib0;touch HERE"}}})
    )
    script = slurm_script(tmp_path, profiles=str(file))
    assert prologue in script
    assert "--interface 'ib0;touch HERE'" in script


def test_a_prologue_may_have_lines(tmp_path):
    python = "echo"
    script = slurm_script(tmp_path, prologue=("if true; then\n\texport A='x  y'\nfi", 'echo "$A" >&2'), python=python)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("x  y\n")
