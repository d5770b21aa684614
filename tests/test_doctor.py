import errno
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from distributed import LocalCluster

from geochip import chipping, doctor, gpus
from geochip.cluster import StillWaitingError, export_lines
from geochip.config import RunConfig
from geochip.doctor import batch, disks, facts, machine, quota, workers
from geochip.doctor.collective import try_collective
from geochip.doctor.data import pretrained_weights_of_worker, wanted_weights
from geochip.doctor.disks import Needed, judge_room
from geochip.doctor.examination import examine as examine_case
from geochip.doctor.facts import Facts, Gpus, disk_type, gather
from geochip.doctor.findings import Case, closing, existing, not_made, ok, warn
from geochip.doctor.probe import Seen
from geochip.doctor.quota import parse_project, parse_quota
from geochip.errors import InputError, WorkError
from geochip.run_file import parse_command
from geochip.slurm import Partition
from helpers import IMAGE, LABEL, UTM, data_flags, run, tree_hash, write_scene
from test_model import put_into_cache


@pytest.fixture
def examine(tmp_path, dask_address, capsys):
    """Runs the command on the shared cluster; returns its lines and whether it says that a run would fail."""

    def run_main(*flags, splits=("train", "val", "test")):
        failed = False
        try:
            doctor.main(
                [
                    f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", *splits), "--chips.size=32",
                    "--model.architecture=linear", "--cluster.kind=address", f"--cluster.address={dask_address}",
                    *map(str, flags),
                ]
            )  # fmt: skip
        except WorkError as error:
            failed = str(error).startswith("a run would fail: see the ")
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        assert captured.err == ""
        assert all(re.match(r"ok   |warn |FAIL ", line) for line in lines[: None if failed else -1])
        assert failed or re.match(r"nothing was found that|\d+ checks? w(as|ere) not made", lines[-1])
        assert failed == any(line.startswith("FAIL") for line in lines)
        return Told(lines, failed)

    return run_main


class Told:
    """What the doctor printed."""

    def __init__(self, lines, failed):
        self.lines, self.failed = lines, failed

    def about(self, what, level):
        """The lines of one level about one thing, joined."""
        start = f"{level:<5}{what}: "
        return "\n".join(line.removeprefix(start) for line in self.lines if line.startswith(start))

    def levels(self):
        return {line[:5].strip() for line in self.lines[:-1]}


@pytest.fixture
def scenes(tmp_path):
    for split, scene_id in (("train", "1"), ("train", "2"), ("val", "3"), ("test", "4")):
        write_scene(tmp_path / "data", split, scene_id)
    return tmp_path / "data"


# --- the whole command ------------------------------------------------------------------------------------------------


def test_a_run_that_would_work_is_told_so_and_nothing_is_written(examine, scenes, tmp_path):
    before = tree_hash(tmp_path)
    told = examine()
    assert not told.failed
    assert told.levels() <= {"ok", "warn"}
    assert told.lines[-1].startswith("nothing was found that would make a run fail")
    assert re.search(
        r"python 3\.\d+\.\d+, geochip .*dask .*zarr .*tensorstore .*torch .*gdal \d", told.about("versions", "ok")
    )
    assert re.search(
        r"4 scenes below .*data, 20 chips \(10 in train, 5 in val, 5 in test\) in 3 tasks", told.about("scenes", "ok")
    )
    assert "1 scene of split test; no model at" in told.about("inference", "ok")
    assert re.search(r"linear, 8 weights; takes batches of 2 chips of 32 x 32", told.about("network", "ok"))
    assert re.search(r"run can be written to, below .*, which is there", told.about("run_dir", "ok"))
    assert re.search(r"has .*iB free.*; a run takes at most .*iB in \d+ files", told.about("space", "ok"))
    assert re.search(r"started on \S+ after \d+ s", told.about("worker", "ok"))
    assert f"{tmp_path}: each sees the other's file" in told.about("worker", "ok")
    assert "as here on" in told.about("versions", "ok")
    assert tree_hash(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_from_the_command_line_with_workers_of_its_own(scenes, tmp_path):
    flags = [
        f"--run_dir={tmp_path / 'run'}",
        *data_flags(scenes, "train", "val", "test"),
        "--model.architecture=linear",
        "--cluster.workers=1",
    ]
    good = run("geochip.doctor", *flags, "--chips.size=32")
    assert (good.returncode, good.stderr) == (0, "")
    assert "each sees the other's file" in good.stdout
    assert not (tmp_path / "run").exists()


def test_a_run_that_would_fail(scenes, tmp_path, capsys):
    flags = [
        f"--run_dir={tmp_path / 'run'}",
        *data_flags(tmp_path, "train", "val", "test"),
        "--model.architecture=linear",
    ]
    with pytest.raises(WorkError, match=r"a run would fail: see the 2 lines that begin with FAIL$"):
        doctor.main([*flags, "--no_probe", "--data.root=/nowhere"])
    told = capsys.readouterr().out
    assert "FAIL scenes: data.root: '/nowhere' is no directory; set it to the one" in told
    assert "warn worker: none was started (--no_probe)" in told


def test_checks_that_were_not_made_are_no_good_news(examine, scenes):
    told = examine("--no_probe")
    assert not told.failed
    assert told.lines[-1].startswith(
        "1 check was not made (worker), so a run may still fail: run this command again without --no_probe; the other "
        "checks found nothing that would make a run fail"
    )


def test_the_last_line():
    good, warned = ok("cpus", "2"), warn("umask", "000 is bad")
    assert closing([good]) == "nothing was found that would make a run fail"
    assert closing([good, warned]) == "nothing was found that would make a run fail; see what begins with warn"
    waiting = [not_made(f"{jobs} worker", "none within a minute", "use --wait") for jobs in ("cpu", "gpu")]
    assert all(str(one).startswith("warn ") for one in waiting)
    assert closing([good, *waiting]) == (
        "2 checks were not made (cpu worker, gpu worker), so a run may still fail: use --wait; the other checks found "
        "nothing that would make a run fail; see what begins with warn"
    )


def test_what_the_command_takes(capsys):
    with pytest.raises(InputError, match=r"chips.sze: there is no such key; did you mean chips.size"):
        doctor.main(["--chips.sze=32"])
    with pytest.raises(SystemExit):
        doctor.main(["--help"])
    text = capsys.readouterr().out
    assert "--no_probe" in text
    assert "--wait" in text


# --- scenes, splits, network ------------------------------------------------------------------------------------------


def test_scenes_that_cannot_be_used(examine, scenes):
    (scenes / IMAGE.format(split="train", id="1")).write_bytes(b"no image")
    told = examine()
    assert re.search(
        r"1 cannot be used: .*scene_1.tif.*; mend them, or allow them with --data.max_bad_scenes 1",
        told.about("scenes", "FAIL"),
    )
    told = examine("--data.max_bad_scenes=1")
    assert not told.failed
    assert "data.max_bad_scenes = 1 allows it" in told.about("scenes", "warn")


def test_scenes_without_labels_are_told(examine, scenes):
    (scenes / LABEL.format(split="train", id="1")).unlink()
    assert "1 are left out: " in examine().about("scenes", "warn")


def test_splits_that_later_commands_need(examine, scenes):
    told = examine(splits=("train",))
    assert (
        "train.val_split: split 'val' has no chips to train with; put scenes into it, or use --train.val_split null"
        in told.about("scenes", "FAIL")
    )
    assert "split 'test' is not among data.splits: train; name one of them" in told.about("inference", "FAIL")
    assert not examine("--train.val_split=null", "--infer.split=train", splits=("train",)).failed


def test_an_image_to_predict_that_is_not_there(examine, scenes):
    told = examine(f"--infer.files=[{scenes / 'none.tif'}]")
    assert "none.tif" in told.about("inference", "FAIL")


def test_splits_that_share_ground(examine, scenes):
    write_scene(scenes, "val", "5", transform=UTM)
    write_scene(scenes, "train", "6", transform=UTM)
    told = examine("--chips.method=grid")
    assert "pairs of chips show some of the same ground" in told.about("splits", "FAIL")
    assert "--chips.allow_overlap true" in told.about("splits", "FAIL")
    told = examine("--chips.method=grid", "--chips.allow_overlap=true")
    assert not told.failed
    assert "allowed by chips.allow_overlap" in told.about("splits", "warn")


def test_a_chip_store_that_is_there(examine, scenes, tmp_path, dask_address, capsys):
    chipping.main(
        [
            f"--run_dir={tmp_path / 'run'}", *data_flags(scenes, "train", "val", "test"), "--chips.size=32",
            "--cluster.kind=address", f"--cluster.address={dask_address}",
        ]
    )  # fmt: skip
    capsys.readouterr()
    told = examine()
    assert "chips.zarr is there, with 3 of 3 shards; a run goes on with it" in told.about("chip store", "ok")
    told = examine("--chips.seed=5")
    assert re.search(
        r"chips.store: .* was made from something else: chips.seed.*; choose another run_dir",
        told.about("chip store", "FAIL"),
    )


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--model.architecture=unet", "--model.encoder=resnet19"], r"model.encoder: 'resnet19' is not known"),
        (["--model.architecture=deeplabv3plus", "--model.encoder=vgg11"], r"cannot be built with model.encoder"),
        (
            ["--model.architecture=deeplabv3plus", "--model.encoder=resnet18", "--train.batch_size=1"],
            r"train.batch_size: 1 chip of 32 x 32 .* use --train.batch_size 2 or more",
        ),
    ],
)
def test_networks_that_could_not_be_trained(examine, scenes, flags, text):
    assert re.search(text, examine(*flags, "--model.encoder_weights=null", "--no_probe").about("network", "FAIL"))


def test_pretrained_weights_are_looked_for_and_never_fetched(examine, scenes, tmp_path, monkeypatch):
    import socket

    from huggingface_hub import constants

    def no_network(*_args, **_kwargs):
        raise AssertionError("the doctor went to the network")

    flags = ["--model.architecture=unet", "--model.encoder=resnet18", "--no_probe"]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    told = examine(*flags)
    assert (
        "the imagenet weights of resnet18 are not in this machine's cache yet; training fetches them when it begins. "
        "Where it has no network, run this once on a machine" in told.about("pretrained weights", "warn")
    )
    # On a compute node it would have none.
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    text = examine(*flags).about("pretrained weights", "FAIL")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert "the imagenet weights of resnet18 are not in this machine's cache and compute nodes mostly have no" in text
    assert "run this once on a machine with a network that shares the cache" in text
    assert "m.fetch_encoder_weights('resnet18', 'imagenet')" in text
    assert "there are no 'imagent' weights" in examine(*flags, "--model.encoder_weights=imagent").about(
        "pretrained weights", "FAIL"
    )
    put_into_cache(tmp_path / "cache")
    assert "imagenet of resnet18 are in this machine's cache" in examine(*flags).about("pretrained weights", "ok")


def test_pretrained_weights_are_looked_for_where_training_runs(examine, scenes, tmp_path, monkeypatch):
    """This machine has them, a worker whose HF_HOME is another one has not."""
    from huggingface_hub import constants

    put_into_cache(tmp_path / "here" / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "here" / "hub"))
    # As if it were a gpu worker of Slurm, which tests/slurm has.
    monkeypatch.setattr(workers, "trains", lambda case, jobs: True)
    flags = ["--model.architecture=unet", "--model.encoder=resnet18"]
    for home in ("there", "here"):
        with strange_worker(
            tmp_path, "env", f"HF_HOME={tmp_path / home}", sys.executable, "-m", "distributed.cli.dask_worker"
        ) as address:
            told = examine(*flags, address)
            assert "imagenet of resnet18 are in this machine's cache" in told.about("pretrained weights", "ok")
            if home == "here":
                assert re.search(
                    r"imagenet of resnet18 are in the cache on \S+, which trains",
                    told.about("pretrained weights", "ok"),
                )
                assert not told.failed
            else:
                assert re.search(
                    r"on \S+, which trains: model.encoder_weights: the imagenet weights of resnet18 are not in this "
                    rf"machine's cache .*fetch_encoder_weights\('resnet18', 'imagenet'\).* \(looked for in {tmp_path}/there"
                    r"/hub\); set HF_HOME to a directory on a disk that all nodes see, .*, and bind it into the image",
                    told.about("pretrained weights", "FAIL"),
                )


def test_which_worker_is_asked_for_pretrained_weights():
    """Random weights, linear networks and workers that only chip need none."""
    deeplab = case_on(kind="slurm")
    assert wanted_weights(deeplab) == ("resnet50", "imagenet")
    for model in ({"encoder_weights": None}, {"architecture": "linear"}, {"encoder": "resnet19"}):
        config = deeplab.config
        assert wanted_weights(Case(config=replace(config, model=replace(config.model, **model)))) is None
    assert [workers.trains(deeplab, jobs) for jobs in ("cpu", "gpu")] == [False, True]
    assert workers.trains(case_on(kind="srun"), "cpu")
    assert not workers.trains(case_on(kind="local"), "cpu")
    assert pretrained_weights_of_worker(deeplab, None, " on n1") == []


def test_a_model_that_is_there_needs_no_weights_and_must_fit_the_scenes(examine, scenes, tmp_path, monkeypatch):
    from huggingface_hub import constants

    from geochip.model import Contract, build_model, save_bundle

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    contract = Contract(
        architecture="linear", encoder="", class_names=("background", "building"), band_names=("band 1", "band 2", "band 3"),
        bands=(1, 2, 3), dtype="uint32", nodata=None, mean=(0.0,) * 3, std=(1.0,) * 3, chip_size=32,
        pixel_size_range=(0.5, 0.5), chip_store_fingerprint="", geochip_version="0",
    )  # fmt: skip
    save_bundle(tmp_path / "run" / "model", build_model(contract), contract)
    told = examine("--model.architecture=unet", "--model.encoder=resnet18")
    assert not told.failed
    assert "not needed as long as" in told.about("pretrained weights", "warn")
    assert re.search(r"1 scene of split test; \d+ windows with the model", told.about("inference", "ok"))
    save_bundle(tmp_path / "run" / "model", build_model(contract), replace(contract, dtype="uint8"))
    assert "has pixels of type uint32, the model was trained on uint8" in examine("--no_probe").about(
        "inference", "FAIL"
    )


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["below a file", "/proc/geochip"])
def test_a_run_dir_that_cannot_be_written_to(examine, scenes, tmp_path, where):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "run" if where == "below a file" else where
    told = examine(f"--run_dir={path}", f"--chips.store={tmp_path / 'elsewhere' / 'chips.zarr'}")
    assert re.search(rf"{path} cannot be written to: .+; choose another run_dir", told.about("run_dir", "FAIL"))
    assert "elsewhere can be written to" in told.about("chips.store", "ok")


@contextmanager
def nobody():
    """Everything is done as a person without rights, as long as the context lasts."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def for_all():
    """A directory that everybody can look into; pytest's own ones are closed."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_a_run_dir_below_somebody_elses_closed_directory(for_all):
    for split, scene_id in (("train", "1"), ("val", "2"), ("test", "3")):
        write_scene(for_all / "data", split, scene_id)
    closed = for_all / "closed"
    (closed / "here" / "run").mkdir(parents=True)
    closed.chmod(0o700)
    flags = [*data_flags(for_all / "data", "train", "val", "test"), "--chips.size=32", "--model.architecture=linear"]
    called = parse_command(
        [f"--run_dir={closed / 'here' / 'run'}", *flags], command="doctor", description="", switches={}
    )
    with nobody():
        assert existing(closed / "here" / "run") == closed
        lines = [str(one) for one in examine_case(Case(config=called.config, probe=False))]
    run_dir = f"FAIL run_dir: {closed}/here/run"
    assert f"{run_dir} cannot be written to: Permission denied; choose another run_dir" in lines
    assert f"{run_dir}/model: Permission denied; have its owner give you access, or name another place" in lines
    # What has nothing to do with it is looked at all the same.
    assert any(line.startswith("ok   versions: ") for line in lines)
    assert any(line.startswith("warn worker: none was started") for line in lines)


def test_a_closed_directory_that_stops_several_checks_is_told_once(tmp_path):
    def check(case):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / name))

    case = Case(config=replace(RunConfig(), run_dir=str(tmp_path / "run")))
    name = "run/chips.zarr"
    (found,) = examine_case(case, [check, check])
    assert str(found) == (
        f"FAIL run_dir: {tmp_path}/run/chips.zarr: Permission denied; have its owner give you access, or name another "
        "place"
    )
    name = "data"
    assert [one.what for one in examine_case(case, [check])] == ["permission"]


def test_a_disk_that_is_too_small(tmp_path):
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize
    assert judge_room(tmp_path, Needed(bytes=free // 2, files=10)).level == "ok"
    tight = judge_room(tmp_path, Needed(bytes=free * 5 // 4, files=10))
    assert tight.level == "warn"
    assert "enough only when imagery shrinks" in tight.text
    full = judge_room(tmp_path, Needed(bytes=free * 3, files=10))
    assert full.level == "FAIL"
    assert "too little even when imagery shrinks to 0.6 of it; free some, choose another run_dir" in full.text


@contextmanager
def small_disk(path, options):
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", path], capture_output=True, check=False
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("only root can mount a disk")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_small_real_disk_and_one_with_few_files(examine, scenes, tmp_path):
    with small_disk(tmp_path / "small", "size=64k") as disk:
        told = examine(f"--run_dir={disk / 'run'}", "--no_probe")
        assert re.search(r"small has \S+ KiB|small has 0\.\d MiB free", told.about("space", "FAIL"))
        assert disk_type(disk) == "tmpfs"
    with small_disk(tmp_path / "few", "size=64m,nr_inodes=40") as disk:
        text = examine(f"--run_dir={disk / 'run'}", "--no_probe").about("space", "FAIL")
        assert re.search(r"room for \d+ files; .* too few files are left", text)


# What `lfs quota -q` prints, of Lustre 2.12 to 2.15: KiB used, soft and hard limit, grace; the same of files.
PLAIN_QUOTA = "        /lustre 1048576       0 3145728       -   57062       0  100000       -\n"
LONG_NAME = """/lustre/project/trees/me
                4120048  5242880 10485760       -   46321  200000  250000       -
"""
OVER = "        /lustre 5247000* 5242880 10485760 6d23h59m54s  200001* 200000  250000    none\n"
FULL = "        /lustre 10485760*      0 10485760       -       5       0       0       -\n"
NO_LIMIT = """        /lustre       4       0       0       -       1       0       0       -
uid 12345 is using default block quota setting
uid 12345 is using default file quota setting
"""
INEXACT = """        /lustre [10200224]*      0 10000000       - [17724]       0   20000       -
Some errors happened when getting quota info. Some devices may be not working or deactivated. The data in "[]" is inaccurate.
"""
WITH_TITLE = f"""Disk quotas for usr me (uid 12345):
     Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace
{PLAIN_QUOTA}"""


@pytest.mark.parametrize(
    ("text", "bytes_", "files", "left", "for_good"),
    [
        (PLAIN_QUOTA, (2**30, 0, 3 * 2**30), (57062, 0, 100_000), (2**31, 42938), (2**31, 42938)),
        (WITH_TITLE, (2**30, 0, 3 * 2**30), (57062, 0, 100_000), (2**31, 42938), (2**31, 42938)),
        (
            LONG_NAME,
            (4120048 * 1024, 5 * 2**30, 10 * 2**30),
            (46321, 200_000, 250_000),
            (10 * 2**30 - 4120048 * 1024, 203_679),
            (5 * 2**30 - 4120048 * 1024, 153_679),
        ),
        # Bytes are over for some days, files for too long.
        (OVER, (5247000 * 1024, 5 * 2**30, 10 * 2**30), (200_001, 200_000, 250_000), (5238760 * 1024, 0), (0, 0)),
        (FULL, (10 * 2**30, 0, 10 * 2**30), (5, 0, 0), (0, None), (0, None)),
        (NO_LIMIT, (4096, 0, 0), (1, 0, 0), (None, None), (None, None)),
        (INEXACT, (10200224 * 1024, 0, 10_000_000 * 1024), (17724, 0, 20_000), (0, 2276), (0, 2276)),
    ],
)
def test_quotas_of_lustre(text, bytes_, files, left, for_good):
    found = parse_quota(text)
    assert [(one.used, one.soft, one.hard) for one in found] == [bytes_, files]
    assert tuple(one.left for one in found) == left
    assert tuple(one.left_for_good for one in found) == for_good


@pytest.mark.parametrize(
    "text",
    [
        "",
        "prj quotas are not enabled.\n",
        # No server told: no limit is not the same as one that is not known.
        "        /lustre     [0]     [0]     [0]       -     [0]     [0]     [0]       -\n",
        "        /lustre 1048576       0\n",
    ],
)
def test_what_tells_no_quota(text):
    with pytest.raises(ValueError):
        parse_quota(text)


def test_projects_of_lustre():
    assert parse_project(" 1000 P /lustre/trees\n") == 1000
    assert parse_project("    0 - /lustre/trees\n") == 0
    # Nothing that is made there belongs to it.
    assert parse_project(" 1000 - /lustre/trees\n") == 0
    assert parse_project("") == 0


@pytest.fixture
def lustre(tmp_path, monkeypatch):
    """Has a directory be on Lustre, with an `lfs` that prints these answers; `asked` is what it was asked."""
    program, log, place = tmp_path / "bin" / "lfs", tmp_path / "asked", tmp_path / "place"
    program.parent.mkdir()
    place.mkdir()
    if os.geteuid() == 0:
        # Only root can give it to a group that is not mine.
        os.chown(place, -1, 12345)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(disks, "disk_type", lambda _path: "lustre")

    def answer(project="    0 - x", user=NO_LIMIT, group=NO_LIMIT, of_project="", then=""):
        log.unlink(missing_ok=True)
        answers = {"project -d": project, "quota -q -u": user, "quota -q -g": group, "quota -q -p": of_project}
        cases = "\n".join(f"'{words} '*) cat <<'END'\n{text}\nEND\n;;" for words, text in answers.items())
        program.write_text(f'#!/bin/sh\necho "$*" >>{log}\ncase "$* " in\n{cases}\nesac\n{then}\n')
        program.chmod(0o755)
        return place

    answer.asked = lambda: log.read_text().splitlines()
    return answer


SMALL = Needed(bytes=2**20, files=10)


def test_the_least_of_the_quotas_on_lustre_counts(lustre):
    place = lustre(project=" 1000 P x", group=PLAIN_QUOTA, of_project=LONG_NAME.replace("250000", "46330"))
    place.chmod(0o2755)
    found = judge_room(place, Needed(bytes=2**20, files=5))
    assert found.level == "ok"
    assert (
        f"{place} has 2.0 GiB free by the quota of group {place.stat().st_gid}, and room for 9 files by the quota of project 1000; a run"
        in found.text
    )
    assert found.text.endswith(
        f"; see `lfs quota -h -g {place.stat().st_gid} {place}` and `lfs quota -h -p 1000 {place}`"
    )
    assert lustre.asked() == [
        f"project -d {place}", f"quota -q -u {os.geteuid()} {place}", f"quota -q -g {place.stat().st_gid} {place}",
        f"quota -q -p 1000 {place}",
    ]  # fmt: skip
    found = judge_room(place, SMALL)
    assert found.level == "FAIL"
    assert (
        "room for 9 files by the quota of project 1000; a run takes at most 1.0 MiB in 10 files: too few files"
        in found.text
    )


@pytest.mark.parametrize(
    ("size", "level", "text"),
    [
        (2**30, "ok", "free by the quota of user"),
        (5 * 2**29, "warn", "enough only when imagery shrinks"),
        (2**32, "FAIL", "too little even when"),
    ],
)
def test_quotas_are_judged_as_free_space_is(lustre, size, level, text):
    found = judge_room(lustre(user=PLAIN_QUOTA), Needed(bytes=size, files=1))
    assert found.level == level
    assert text in found.text


def test_a_soft_quota_is_no_end_but_for_good(lustre):
    soft = "  /lustre 2048 3072 0 - 5 10 0 -"
    assert judge_room(lustre(user=soft), Needed(bytes=2**20, files=5)).level == "ok"
    for needed, left in ((Needed(bytes=2**20 + 1, files=1), "1.0 MiB"), (Needed(bytes=1, files=6), "5 files")):
        found = judge_room(lustre(user=soft), needed)
        assert found.level == "warn"
        assert (
            f"that passes the soft quota of user {os.geteuid()}, which leaves {left} and may be passed for some days only "
            f"(`lfs quota -h -u {os.geteuid()} "
        ) in found.text
        assert "no quota leaves less" not in found.text
    found = judge_room(lustre(user=soft.replace("2048 3072 0 -", "4096* 3072 0 none")), Needed(bytes=1, files=1))
    assert found.level == "FAIL"


def test_no_quota_leaves_less_than_the_disk(lustre):
    place = lustre()
    assert judge_room(place, SMALL).text.endswith("; no quota leaves less")
    # It belongs to no project, and new files to my own group.
    assert lustre.asked()[1:] == [f"quota -q -u {os.geteuid()} {place}", f"quota -q -g {os.getegid()} {place}"]


def test_quotas_that_lustre_does_not_tell(lustre, monkeypatch, tmp_path):
    hint = "a quota of yours is not known here: look with `lfs quota -hu $USER "
    found = judge_room(lustre(user="", group=""), SMALL)
    assert found.level == "ok"
    assert hint in found.text
    # What is known counts all the same.
    found = judge_room(lustre(user=FULL, group="Permission denied."), SMALL)
    assert found.level == "FAIL"
    assert hint in found.text
    assert f"by the quota of user {os.geteuid()}" in found.text
    # One server is down.
    assert judge_room(lustre(user=INEXACT, then="exit 5"), SMALL).level == "FAIL"
    monkeypatch.setattr(quota, "_SECONDS", 0.2)
    assert hint in judge_room(lustre(user=FULL, then="exec sleep 30"), SMALL).text
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hint in judge_room(tmp_path, SMALL).text


def test_lfs_is_not_asked_of_other_disks(lustre, monkeypatch):
    place = lustre(user=FULL)
    monkeypatch.setattr(disks, "disk_type", lambda _path: "ext4")
    found = judge_room(place, SMALL)
    assert found.level == "ok"
    assert "quota" not in found.text


# --- this machine -----------------------------------------------------------------------------------------------------

PLAIN = Facts(
    host="here", versions={"python": "3.11.2", "geochip": "1", "dask": "1", "torch": "2.10"}, cpus=2, cpus_of_machine=8,
    memory=2**34, shared_memory=2**33, open_files=4096, umask=0o022, interfaces={"lo": "127.0.0.1", "eth0": "10.0.0.1"},
    scratch="/tmp", scratch_disk="ext4",
)  # fmt: skip


def test_facts_are_those_of_this_process():
    facts = gather()
    assert facts.cpus == len(os.sched_getaffinity(0))
    assert facts.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert facts.interfaces["lo"] == "127.0.0.1"
    before = os.umask(0o027)
    try:
        assert gather().umask == 0o027
    finally:
        os.umask(before)


def case_with(facts=PLAIN, **cluster):
    case = Case(config=RunConfig(cluster=replace(RunConfig().cluster, **cluster)))
    # As if it had been looked for already.
    case.__dict__["facts"] = facts
    return case


def test_what_a_small_machine_is_told():
    assert "fewer than cluster.workers = 9; lower it" in machine.cpus(case_with(workers=9), PLAIN)[0].text
    small = replace(PLAIN, shared_memory=64 * 2**20, open_files=256, umask=0o000)
    assert re.search(r"64.0 MiB is little.*Bus error.*--shm-size=8g", machine.shared_memory(small).text)
    assert (
        "at most 256; 100 workers want 1512: raise it with `ulimit -n 1512`"
        in machine.open_files(case_with(workers=100), small).text
    )
    assert "000 lets everybody change what a run writes; set `umask 027`" in machine.umask(small).text
    assert {
        machine.shared_memory(PLAIN).level,
        machine.open_files(case_with(), PLAIN).level,
        machine.umask(PLAIN).level,
    } == {"ok"}


def test_too_little_memory_for_so_many_workers(examine, scenes):
    told = examine("--cluster.kind=local", "--cluster.workers=100000", "--no_probe")
    assert re.search(
        r"100000 workers that chip take about .* each, more than there is; use --cluster.workers \d+",
        told.about("memory", "warn"),
    )


def test_interfaces_that_are_not_there():
    (missing,) = machine.interface(PLAIN, "ib0", {})
    assert missing.level == "FAIL"
    assert missing.text == (
        "cluster.scheduler_interface: ib0 is not up here; here has lo (127.0.0.1), eth0 (10.0.0.1); name one that nodes reach"
    )
    (there,) = machine.interface(PLAIN, "eth0", {"cluster.cpu.interface": "ib0"})
    assert (there.level, there.text[:33]) == ("ok", "cluster.scheduler_interface: eth0")
    (of_worker,) = machine.interface(PLAIN, None, {"cluster.cpu.interface": "ib0"})
    assert of_worker.level == "warn"
    assert re.search(r"cluster.cpu.interface: ib0 is not up here.* with cluster.scheduler_interface", of_worker.text)
    assert machine.interface(PLAIN, None, {"cluster.cpu.interface": "eth0"})[0].level == "ok"
    fast = replace(PLAIN, interfaces={**PLAIN.interfaces, "ib0": "10.1.0.1"})
    (hint,) = machine.interface(fast, None, {"cluster.cpu.interface": None})
    assert "ib0 looks like the fast network: name it" in hint.text


def test_scratch_on_a_network_disk():
    assert machine.scratch(PLAIN, " on n1").level == "ok"
    shared = machine.scratch(replace(PLAIN, scratch="/home/me", scratch_disk="lustre"), " on n1")
    assert shared.level == "warn"
    assert re.search(r"/home/me \(lustre\) on n1 is shared over the network.*local_directory", shared.text)


@pytest.mark.parametrize(
    ("name", "version", "level"),
    [
        ("python", "3.12.1", "FAIL"),
        ("python", "3.11.9", "warn"),
        ("geochip", "2", "FAIL"),
        ("dask", "2", "FAIL"),
        ("torch", "2.9", "warn"),
    ],
)
def test_other_versions_on_a_worker(name, version, level):
    (found,) = machine.same_versions(PLAIN.versions, {**PLAIN.versions, name: version}, " on n1")
    assert found.level == level
    assert found.text == f"{name} is {PLAIN.versions[name]} here and {version} on n1; use the same environment on both"


A100 = Gpus(cuda="12.8", devices=(("NVIDIA A100", 80 * 2**30),), nccl="2.26", driver=True)
NONE = Gpus(cuda="12.8")
DRIVER = replace(NONE, driver=True, driver_version="535.104.05")
TOO_OLD = replace(
    DRIVER, cuda="13.2",
    trouble="The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver",
)  # fmt: skip


def case_on(train="auto", infer="auto", **cluster):
    """A case that computes on these devices."""
    config = RunConfig(cluster=replace(RunConfig().cluster, **cluster))
    return Case(
        config=replace(
            config, train=replace(config.train, device=train), infer=replace(config.infer, device=infer)
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("gpus", "devices", "asked", "level", "text"),
    [
        (A100, {}, "", "ok", r"NVIDIA A100 with 80.0 GiB on n1; CUDA 12.8, NCCL 2.26; up to 1 ranks"),
        (
            replace(A100, visible="MIG-6a-1"),
            {},
            "gres gpu:1",
            "ok",
            r"a MIG slice: train one rank on it \(--nproc-per-node=1\), NCCL refuses more",
        ),
        (NONE, {}, "", "ok", "none on n1: computes on the CPU"),
        (
            NONE,
            {"train": "cuda"},
            "",
            "FAIL",
            r"none on n1, but train.device: cuda needs one; there is no driver: ask for a GPU \(gres\), and start.*; or use auto or cpu",
        ),
        (
            NONE,
            {"train": "cuda", "infer": "cuda"},
            "",
            "FAIL",
            r"but train.device: cuda and infer.device: cuda needs one",
        ),
        (
            NONE,
            {"train": "cpu", "infer": "cuda"},
            "gres gpu:1",
            "FAIL",
            r"but infer.device: cuda .*; or use cpu, and ask for no GPU$",
        ),
        (
            NONE,
            {},
            "gres gpu:1",
            "FAIL",
            r"none that PyTorch can use on n1, in spite of gres gpu:1: with train.device: auto and infer.device: auto a run ends there; "
            r"there is no driver: start containers with --nv, else ask the site's staff; or use cpu, and ask for no GPU$",
        ),
        (NONE, {"infer": "cpu"}, "gpus 2", "FAIL", r"in spite of gpus 2: with train.device: auto a run ends there"),
        (replace(NONE, given=True), {}, "", "FAIL", "in spite of what Slurm says, SLURM_GPUS_ON_NODE: with"),
        (
            replace(NONE, cuda=None),
            {},
            "gres gpu:1",
            "FAIL",
            "this PyTorch is built for the CPU only: install one that is built with CUDA",
        ),
        (replace(NONE, cuda=None, driver=True), {}, "", "warn", "this PyTorch is built for the CPU only"),
        (replace(NONE, cuda=None), {}, "", "ok", "none on n1: computes on the CPU"),
        (
            TOO_OLD,
            {},
            "gres gpu:1",
            "FAIL",
            r"the driver 535.104.05, which is for CUDA 12.2, is too old for this PyTorch, which is built for CUDA 13.2: "
            r"install one that is built for CUDA 12 \(pytorch.org tells the command\), or ask the site's staff for a newer driver",
        ),
        (TOO_OLD, {}, "", "warn", "the driver 535.104.05, which is for CUDA 12.2, is too old for this PyTorch"),
        (
            replace(DRIVER, trouble="Found no NVIDIA driver on your system. Please check"),
            {},
            "gres gpu:1",
            "FAIL",
            "the machine has driver 535.104.05, but not where PyTorch runs: start containers with --nv",
        ),
        (
            replace(DRIVER, visible="MIG-7", trouble="No CUDA GPUs are available"),
            {},
            "",
            "warn",
            "PyTorch says: No CUDA GPUs are available; there is a driver 535.104.05: see `nvidia-smi -L`; CUDA_VISIBLE_DEVICES is MIG-7",
        ),
        (DRIVER, {}, "", "warn", "none is visible; there is a driver 535.104.05: .*; CUDA_VISIBLE_DEVICES is not set"),
    ],
)
def test_gpus_and_what_they_mean(gpus, devices, asked, level, text):
    (found,) = machine.judge_gpus(case_on(**devices), gpus, " on n1", asked)
    assert found.level == level
    assert re.search(text, found.text)


def test_workers_are_looked_at_for_gpus_unless_all_is_computed_on_cpus():
    wants = workers.wants_gpu
    for train, infer in (("cuda", "cpu"), ("auto", "cpu"), ("cpu", "auto"), ("cpu", "cuda")):
        assert wants(case_on(train, infer, kind="slurm"), "gpu")
        assert not wants(case_on(train, infer, kind="slurm"), "cpu")
        assert wants(case_on(train, infer, kind="srun"), "cpu")
        assert not wants(case_on(train, infer, kind="local"), "cpu")
    assert not wants(case_on("cpu", "cpu", kind="slurm"), "gpu")
    (found,) = machine.gpus_here(case_on("cpu", "cpu"))
    assert str(found) == "ok   gpu: train.device and infer.device are cpu"


def test_what_pytorch_and_slurm_say_of_gpus(monkeypatch, tmp_path):
    import torch

    def say_why():
        raise RuntimeError("The driver is broken\nC++ CapturedTraceback: ...")

    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", say_why)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12\n"
    )
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path / "version")
    found = facts.look_for_gpus()
    assert found.trouble == "The driver is broken"
    assert (found.given, found.driver, found.driver_version) == (True, True, "535.104.05")
    for nothing in ("0", ""):
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", nothing)
        assert not facts.look_for_gpus().given


def test_one_rank_adds_up_a_tensor_and_leaves_nothing_behind():
    import torch.distributed as dist

    for _ in range(2):
        assert try_collective("gloo", "cpu") == ""
        assert not dist.is_initialized()


def test_why_a_rank_cannot_add_up_a_tensor(monkeypatch):
    import torch
    import torch.distributed as dist

    def fail_as_nccl_does(_tensor):
        raise dist.DistBackendError(
            "NCCL error in: NCCLUtils.cpp:77, unhandled\nLast error:\nno socket interface found"
        )

    assert "nothing" in try_collective("nothing", "cpu")
    if not torch.cuda.is_available():
        assert try_collective("gloo", "cuda:0") != ""
        assert try_collective("nccl", "cuda:0") != ""
    assert not dist.is_initialized(), "a group that failed is gone as well"
    with monkeypatch.context() as patch:
        patch.setattr(dist, "all_reduce", fail_as_nccl_does)
        assert try_collective("gloo", "cpu") == (
            "NCCL error in: NCCLUtils.cpp:77, unhandled Last error: no socket interface found"
        )
        patch.setattr(dist, "all_reduce", lambda tensor: tensor.add_(1))
        assert try_collective("gloo", "cpu") == "the sum is 10.0, and should be 6"
        assert not dist.is_initialized()
    assert try_collective("gloo", "cpu") == ""


def test_a_trial_that_hangs_is_not_waited_for(monkeypatch):
    import torch.distributed as dist

    end, ended = threading.Event(), threading.Event()

    def hang(_tensor):
        end.wait(60)

    destroy = dist.destroy_process_group

    def destroy_and_tell():
        destroy()
        ended.set()

    monkeypatch.setattr(dist, "all_reduce", hang)
    monkeypatch.setattr(dist, "destroy_process_group", destroy_and_tell)
    assert try_collective("gloo", "cpu", seconds=0.5) == "it has not ended after 0 s"
    assert try_collective("gloo", "cpu") == "this process is in another process group"
    end.set()
    assert ended.wait(60)


def test_nccl_is_tried_on_the_first_gpu_that_works(monkeypatch):
    import torch

    ones, tried = torch.ones, []

    def second_works(size, device):
        if device == "cuda:0":
            raise RuntimeError("no kernel image is available\nmore")
        return ones(size)

    def tell(*of):
        tried.append(of)
        return "no socket interface found"

    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: SimpleNamespace(name=f"GPU {number}", total_memory=2**30)
    )
    monkeypatch.setattr(torch, "ones", second_works)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    monkeypatch.setattr(facts, "try_collective", tell)
    found = facts.look_for_gpus()
    assert found.devices == (("GPU 1", 2**30),)
    assert (found.trouble, found.nccl) == ("GPU 0: no kernel image is available", "2.27.5")
    assert (tried, found.nccl_trouble) == ([("nccl", "cuda:1")], "no socket interface found")


def test_what_the_trial_of_nccl_means():
    def levels(case, gpus):
        return [one.level for one in machine.judge_nccl(case, gpus, " on n1")]

    alone = replace(A100, nccl_trouble="no socket interface found")
    broken = replace(alone, devices=A100.devices * 2)
    (found,) = machine.judge_nccl(case_on(), broken, " on n1")
    assert str(found).startswith(
        "FAIL nccl: one rank cannot add up a tensor on n1, as several do at each step of training: no socket interface "
        "found; NCCL_DEBUG=INFO has NCCL say more, and NCCL_SOCKET_IFNAME"
    )
    assert levels(case_on(), A100) == ["ok"]
    # One rank, which does without.
    assert levels(case_on(), replace(broken, visible="MIG-6a-1")) == levels(case_on(), alone) == ["warn"]
    assert levels(case_on("cpu"), broken) == []
    assert levels(case_on(), NONE) == levels(case_on(), replace(A100, nccl=None)) == []
    seen = Seen(facts=replace(PLAIN, gpus=broken), unseen=(), unwritable={}, unreadable={})
    for kind, failed in (("srun", ["nccl"]), ("address", [])):
        case = case_on(kind=kind, address="tcp://10.0.0.1:8786" if kind == "address" else None)
        case.__dict__["facts"] = PLAIN
        assert [one.what for one in workers.judge_worker(case, "cpu", seen) if one.level == "FAIL"] == failed


def test_workers_of_somebody_elses_cluster_predict_and_do_not_train():
    assert workers.computes_on(case_on(kind="address", address="tcp://10.0.0.1:8786"), "cpu") == ("infer.device",)
    assert workers.computes_on(case_on(kind="srun"), "cpu") == ("train.device", "infer.device")
    assert [workers.computes_on(case_on(kind="slurm"), jobs) for jobs in ("cpu", "gpu")] == [
        (), ("train.device", "infer.device"),
    ]  # fmt: skip
    assert workers.computes_on(case_on(kind="local"), "cpu") == ()


def test_nccl_of_this_machine_is_judged_where_it_trains(monkeypatch):
    broken = replace(PLAIN, gpus=replace(A100, nccl_trouble="no socket interface found", devices=A100.devices * 2))
    tried = []
    monkeypatch.setattr(machine, "gather", lambda *, gpus, nccl: tried.append(nccl) or broken)
    assert [one.level for one in machine.gpus_here(case_on(kind="local"))] == ["ok", "FAIL"]
    assert [one.level for one in machine.gpus_here(case_on(kind="slurm"))] == ["ok"]
    # Nor does it take a login node's GPU for it.
    assert tried == [True, False]


@pytest.mark.gpu
def test_nccl_on_a_real_gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    assert try_collective("nccl", "cuda:0") == ""


def test_versions_of_drivers(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path / "version")
    open_one = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build  (dvs-builder@U16)\n"
    for text, version in ((open_one, "550.54.14"), ("NVRM version: something else", "")):
        (tmp_path / "version").write_text(text)
        assert gpus.driver_version() == version


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("--gres=gpu:a100:1", "gres gpu:a100:1"),
        ("--gres=localtmp:50G,gpu", "gres localtmp:50G,gpu"),
        ("--gres=gres/gpu:2", "gres gres/gpu:2"),
        ("--gpus=2", "gpus 2"),
        ("-G 2", "gpus 2"),
        ("--gpus-per-node=a100:2", "gpus-per-node a100:2"),
        ("--gres=localtmp:50G", ""),
        ("--gres=gpu:0", ""),
        ("--gpus-per-task 0", ""),
        ("--partition=gpu", ""),
        ("--gpus-freq=high", ""),
    ],
)
def test_whether_a_job_asks_for_gpus(line, asked):
    assert (
        batch.asked_gpus(batch.read_script(f"#!/bin/sh\n#SBATCH {line}\npython -m distributed.cli.dask_worker x\n"))
        == asked
    )


def test_a_gpu_that_is_asked_for_on_a_machine_without(examine, scenes):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    text = examine("--cluster.kind=local", "--train.device=cuda", "--infer.device=cuda", "--no_probe").about(
        "gpu", "FAIL"
    )
    assert re.search(r"none on \S+, but train.device: cuda and infer.device: cuda needs one", text)
    assert "need not have one" in examine("--no_probe").about("gpu", "ok")
    # A worker of somebody's cluster predicts, and does not train.
    text = examine("--train.device=cuda", "--infer.device=cuda").about("gpu", "FAIL")
    assert re.search(r"none on \S+, but infer.device: cuda needs one", text)
    assert not examine("--train.device=cuda", "--infer.device=cpu").about("gpu", "FAIL")
    assert not examine("--train.device=cpu", "--infer.device=cpu").about("gpu", "FAIL")


# --- workers ----------------------------------------------------------------------------------------------------------


@contextmanager
def strange_worker(tmp_path, *command):
    """A scheduler whose only worker is this command."""
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        options = ["--no-nanny", "--no-dashboard", "--local-directory", tmp_path / "scratch"]
        worker = subprocess.Popen(
            [*command, cluster.scheduler_address, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield f"--cluster.address={cluster.scheduler_address}"
        finally:
            worker.terminate()
            worker.wait(30)


def test_a_worker_on_a_machine_that_does_not_share_the_disks(examine, scenes, tmp_path, monkeypatch):
    """A worker in a mount namespace of its own: its run_dir is another disk, its data are not there."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can make a mount namespace")
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(workers, "SEEN_AFTER", 0.5)
    hide = f'mount -t tmpfs none {shared} && mount -t tmpfs none {scenes} && exec "$@"'
    with strange_worker(
        tmp_path, "unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, "-m", "distributed.cli.dask_worker"
    ) as address:
        told = examine(address, f"--run_dir={shared}")
    text = told.about("worker", "FAIL")
    assert re.search(rf"{shared} is another one on \S+: neither sees the other's files; put run_dir on a disk", text)
    assert re.search(r"scene_1.tif cannot be read on \S+: No such file or directory; put the data on a disk", text)
    assert list(shared.iterdir()) == []


def test_a_worker_with_another_geochip_and_one_that_does_not_answer(examine, scenes, tmp_path, monkeypatch):
    # One without the doctor, as an earlier geochip is.
    code = "import sys; sys.modules['geochip.doctor'] = None; from distributed.cli.dask_worker import main; main()"
    with strange_worker(tmp_path, sys.executable, "-c", code) as address:
        text = examine(address).about("worker", "FAIL")
        assert re.search(r"it lacks what this geochip needs \(.*geochip.doctor.*\); install the same geochip", text)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "scratch") == ["data"]
    monkeypatch.setattr(workers, "_SECONDS_TO_LOOK", 0.001)
    assert "it has not looked at its machine within 0 s: it died, or a disk hangs" in examine().about("worker", "FAIL")


def test_why_a_worker_did_not_come(tmp_path):
    directory = tmp_path / ".geochip-doctor-1a-run_dir"
    case = Case(config=RunConfig())
    error = WorkError(
        f"2 jobs ended before any worker came: see it (log: {directory}/a-7.out); what is finished is kept"
    )
    error.add_note("its log ends: line 3: no python | line 4: end")
    found = workers.why_no_worker(case, "gpu worker", error)
    assert str(found) == (
        "FAIL gpu worker: 2 jobs ended before any worker came: see it; its log ends: line 3: no python | line 4: end"
    )
    waits = StillWaitingError(
        f"no worker for 1 minutes: 0 of 1 workers are there; job 7 starts; raise it, or see the logs, {directory}/a-JOB.out"
        "; what is finished is kept",
        "job 7 starts",
    )
    assert str(workers.why_no_worker(case, "worker", waits)) == (
        "warn worker: none within a minute: job 7 starts; --wait waits as long as a run would"
    )
    assert "so a run may still fail: run this command again with --wait" in closing(
        [workers.why_no_worker(case, "worker", waits)]
    )
    case.patient = True
    assert str(workers.why_no_worker(case, "worker", waits)) == (
        "FAIL worker: no worker for 1 minutes: 0 of 1 workers are there; job 7 starts; raise it, or see the log"
    )


def test_the_end_of_the_latest_log(tmp_path):
    assert workers.last_lines(tmp_path) == ""
    for time, name in enumerate(("b.out", "a.out")):
        (tmp_path / name).write_text(
            f"of {name}\n" + "\n".join(f"line  {number}" for number in range(9)) + f"\n\n{name}\n"
        )
        os.utime(tmp_path / name, (time, time))
    assert workers.last_lines(tmp_path) == "line 6 | line 7 | line 8 | a.out"


# --- Slurm, as far as it can be told without one ----------------------------------------------------------------------


def test_without_slurm_the_doctor_says_where_to_go(examine, scenes, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    told = examine("--cluster.kind=slurm")
    assert "is not on PATH, so no jobs can be submitted from here" in told.about("slurm", "FAIL")
    assert "none was started: see above" in told.about("gpu worker", "warn")


def test_srun_outside_of_a_job(examine, scenes, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    told = examine("--cluster.kind=srun", "--cluster.scheduler_interface=ib9")
    assert not told.failed
    assert re.search(
        r"cluster.kind: srun starts workers inside a Slurm job only, and SLURM_JOB_ID is not set: workers and their "
        r"network can be judged in a job only; run this command again in one \(salloc, or a script for sbatch\)",
        told.about("slurm", "warn"),
    )
    assert "none was started: see above" in told.about("worker", "warn")
    assert told.lines[-1].startswith(
        "2 checks were not made (slurm, worker), so a run may still fail: run this command again in a Slurm job; "
    )
    # All else is looked at, but for the network of a machine that the scheduler will not be on.
    for what in ("versions", "scenes", "network", "run_dir", "space"):
        assert told.about(what, "ok")
    assert not any("interface: " in line for line in told.lines)


SCRIPT = """#!/usr/bin/env bash

#SBATCH -J geochip
#SBATCH -A trees
#SBATCH -p gpu
#SBATCH -n 1
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH -t 01:30:00
#SBATCH --gres=gpu:a100:1
export OMP_NUM_THREADS=1
{prologue}
{python} -m distributed.cli.dask_worker tcp://10.0.0.1:1 --nthreads 1 --interface ib0
"""


def script(python="python", prologue=""):
    return batch.read_script(SCRIPT.format(python=python, prologue=prologue))


def test_what_a_job_script_asks_for_is_read_from_it():
    job = script("apptainer exec --nv 'my image.sif' python")
    assert job.directives == {
        "J": "geochip", "account": "trees", "partition": "gpu", "ntasks": "1", "cpus-per-task": "4", "mem": "8G",
        "time": "01:30:00", "gres": "gpu:a100:1",
    }  # fmt: skip
    assert job.launcher == ("apptainer", "exec", "--nv", "my image.sif", "python")
    assert (job.interface, job.prologue) == ("ib0", False)
    assert script(prologue="module load apptainer").prologue
    assert script(prologue="export PATH=/opt/bin:$PATH").prologue
    assert not script(prologue="\n".join(export_lines())).prologue


GPU = Partition(
    name="gpu", up=True, max_time="2-00:00:00", nodes=3, cpus_per_node=32, memory_per_node=128_000, gres="gpu:a100:4(S:0-1)",
    default=False, allow_accounts="ALL",
)  # fmt: skip


@pytest.mark.parametrize(
    ("partition", "level", "text"),
    [
        (GPU, "ok", r"partition gpu, up, 3 nodes of 32 CPUs and 125.0 GiB, gpu:a100:4\(S:0-1\); at most 2-00:00:00"),
        (replace(GPU, name="other"), "FAIL", "cluster.gpu.partition: there is no partition 'gpu'; there are other"),
        (replace(GPU, up=False), "FAIL", "cluster.gpu.partition: gpu is not up; name another one"),
        (
            replace(GPU, max_time="01:00:00"),
            "FAIL",
            "cluster.gpu.walltime: 01:30:00 is more than partition gpu allows, 01:00:00; lower it",
        ),
        (
            replace(GPU, cpus_per_node=2),
            "FAIL",
            "cluster.gpu.cores: 4 are more than any node of partition gpu has, 2; lower it",
        ),
        (
            replace(GPU, memory_per_node=4000),
            "FAIL",
            "cluster.gpu.memory: 8.0 GiB is more than any node of partition gpu has, 3.9 GiB",
        ),
        (
            replace(GPU, gres=""),
            "warn",
            "cluster.gpu.gres: no node of partition gpu has gpu:a100:1; they have none at all",
        ),
        (replace(GPU, gres="gpu:h100:4"), "warn", "has gpu:a100:1; they have gpu:h100:4; name what there is"),
    ],
)
def test_partitions_and_their_limits(partition, level, text):
    (found,) = batch.judge_partition("gpu", script(), {partition.name: partition})
    assert found.level == level
    assert re.search(text, found.text)


def test_no_partition_is_named_and_none_is_the_default():
    job = replace(script(), directives={})
    (found,) = batch.judge_partition("cpu", job, {"gpu": GPU})
    assert "cluster.cpu.partition: none is named and Slurm has no default; name one of gpu" in found.text
    assert batch.judge_partition("cpu", job, {"gpu": replace(GPU, default=True)})[0].level == "ok"


@pytest.mark.parametrize(
    ("request_", "fits"),
    [
        ("gpu", True),
        ("gpu:4", True),
        ("gpu:6", True),
        ("gpu:7", True),
        ("gpu:8", False),
        ("gres:gpu:2", True),
        ("gpu:a100", True),
        ("gpu:a100_1g.10gb:7", True),
        ("gpu:a100:5", False),
        ("gpu:v100:3", True),
        ("gpu:v100:4", False),
        ("gpu:h100:1", False),
        ("fpga:1", False),
        ("localtmp", True),
        ("localtmp:50G", True),
        ("localtmp:1572864m", True),
        ("localtmp:2T", False),
        ("bandwidth:4G", True),
    ],
)
def test_generic_resources(request_, fits):
    there = (
        "gpu:a100:4(S:0-1),localtmp:1536G; gpu:a100_1g.10gb:7(S:0); gpu:v100:1(S:0),gpu:v100:2(S:1),gpu:p100:3(S:0),"
        "bandwidth:no_consume:4G"
    )
    assert batch.has_gres(there, request_) == fits


@pytest.mark.parametrize(
    ("python", "prologue", "level", "text"),
    [
        (
            "sh image.sif python",
            "",
            "FAIL",
            "cluster.gpu.python: there is no image image.sif; build it, or give its path",
        ),
        (
            "apptainer-of-nobody exec python",
            "",
            "FAIL",
            "apptainer-of-nobody is not there, or not on PATH; give its path, or load it in cluster.gpu.prologue",
        ),
        (
            "apptainer-of-nobody exec python",
            "module load x",
            "warn",
            "on PATH of this machine; a job finds it only if its prologue loads it",
        ),
        ("sh -c python", "", "ok", "starts Python with sh -c python"),
    ],
)
def test_what_starts_python_in_a_job(python, prologue, level, text):
    (found,) = batch.launcher("gpu", script(python, prologue))
    assert found.level == level
    assert text in found.text
