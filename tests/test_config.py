import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from geochip.config import RunConfig, available_cpus
from geochip.errors import _OF_SITE, GeochipError, InputError, WorkError, run_command
from geochip.run_file import config_keys, parse_run_config

ROOT = Path(__file__).parents[1]


def parse(*argv):
    return parse_run_config([str(word) for word in argv], command="chipping", description="test")[0]


def error_lines(*argv):
    with pytest.raises(InputError) as caught:
        parse(*argv)
    return str(caught.value).splitlines()


def test_defaults_are_the_tutorials():
    config = parse()
    assert (config.chips.size, config.chips.per_scene) == (300, 5)
    assert (config.train.lr, config.train.epochs, config.train.batch_size) == (1e-4, 3, 2)
    assert config.model.encoder == "resnet50"
    assert config.data.splits == ("train", "val", "test")
    assert config.data.image.format(split="val", id=7) == "val/RGB-PanSharpen_AOI_2_Vegas_img7.tif"
    assert config.data.label.format(split="val", id=7) == "val/buildings_AOI_2_Vegas_img7.geojson"


def test_flags_override_the_run_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("run_dir: there\nchips:\n  size: 128\n  per_scene: 9\n")
    config = parse("--config", file, "--chips.size", 64)
    assert (config.run_dir, config.chips.size, config.chips.per_scene) == ("there", 64, 9)


def test_paths_derive_from_run_dir_unless_given():
    config = parse("--run_dir=runs/a", "--infer.store=elsewhere/p.zarr")
    assert config.chip_store == Path("runs/a/chips.zarr")
    assert config.catalogue_path == Path("runs/a/scenes.parquet")
    assert config.train_dir == Path("runs/a/train")
    assert config.bundle_dir == Path("runs/a/model")
    assert config.eval_path == Path("runs/a/eval.json")
    assert config.prediction_store == Path("elsewhere/p.zarr")
    assert config.cog_dir == Path("elsewhere/p")
    assert parse("--chips.store=x/c.zarr", "--model.bundle=m").chip_store == Path("x/c.zarr")
    assert parse("--model.bundle=m").bundle_dir == Path("m")


def test_print_config_is_a_run_file_with_comments(tmp_path):
    printed = subprocess.run(
        [sys.executable, "-m", "geochip.chipping", "--chips.size=77", "--print_config"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "# Height and width of a chip, in pixels" in printed
    file = tmp_path / "run.yaml"
    file.write_text(printed)
    assert parse("--config", file) == parse("--chips.size=77")


def test_every_key_has_a_help_text():
    printed = subprocess.run(
        [sys.executable, "-m", "geochip.chipping", "--print_config"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for key in config_keys():
        name = key.rpartition(".")[2]
        place = next(i for i, line in enumerate(printed) if line.strip().startswith(f"{name}:"))
        assert printed[place - 1].strip().startswith("# "), key


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_run_files(example):
    assert isinstance(parse("--config", example), RunConfig)
    assert set(yaml.safe_load(example.read_text())) <= set(RunConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("chips:\n  sizee: 3\n", "chips.sizee: there is no such key; did you mean chips.size?"),
        ("chips:\n  colour: 3\n", "chips.colour: there is no such key; known are chips.size, chips.method, chips.per_scene, chips.per_area, chips.stride, chips.edge, chips.size_range, chips.aoi, chips.aoi_layer, chips.aoi_within, chips.min_valid, chips.target_classes, chips.min_target_fraction, chips.negative_rate, chips.max_tries, chips.seed, chips.allow_overlap, chips.store"),
        ("chip:\n  size: 3\n", "chip: there is no such key; known are run_dir, data, labels, split, chips, model, train, infer, cluster"),
        ("foo: 1\n", "foo: there is no such key; known are run_dir, data, labels, split, chips, model, train, infer, cluster"),
        ("chips:\n  size: abc\n", "chips.size: 'abc' is not allowed: must be a whole number"),
        ("train:\n  lr: fast\n", "train.lr: 'fast' is not allowed: must be a number"),
        ("data:\n  bands: red\n", "data.bands: 'red' is not allowed: must be a list of whole numbers or null"),
        ("infer:\n  blend: soft\n", "infer.blend: 'soft' is not allowed: must be one of 'hann', 'average'"),
        ("train:\n  augment: maybe\n", "train.augment: 'maybe' is not allowed: must be true or false"),
    ],
)  # fmt: skip
def test_wrong_keys_and_types_are_named_in_one_line(tmp_path, text, line):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert error_lines("--config", file) == [line]


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--chips.size=0", "chips.size: 0 is not allowed: must be 1 to 16384 pixels"),
        ("--chips.per_scene=0", "chips.per_scene: 0 is not allowed: must be 1 to 1000000"),
        ("--chips.seed=-1", "chips.seed: -1 is not allowed: must be 0 to 9223372036854775807 (2**63 - 1)"),
        ("--train.epochs=0", "train.epochs: 0 is not allowed: must be 1 to 1000000"),
        ("--train.batch_size=0", "train.batch_size: 0 is not allowed: must be 1 to 65536"),
        ("--train.lr=0", "train.lr: 0.0 is not allowed: must be greater than 0 and at most 1000000"),
        ("--train.seed=-1", "train.seed: -1 is not allowed: must be 0 to 9223372036854775807 (2**63 - 1)"),
        ("--train.save_minutes=0", "train.save_minutes: 0.0 is not allowed: must be greater than 0 and at most 1000000, or null"),
        ("--train.split=x", "train.split: 'x' is not allowed: must be one of data.splits: train, val, test"),
        ("--infer.window=0", "infer.window: 0 is not allowed: must be 1 to 16384 pixels, or null"),
        ("--infer.stride=0", "infer.stride: 0 is not allowed: must be 1 to 16384 pixels, or null"),
        ("--infer.batch_size=0", "infer.batch_size: 0 is not allowed: must be 1 to 65536"),
        ("--infer.block=8", "infer.block: 8 is not allowed: must be 16 to 65536 pixels"),
        ("--cluster.workers=0", "cluster.workers: 0 is not allowed: must be 1 to 100000, or null"),
        (
            "--cluster.kind=address",
            "cluster.address: null is not allowed: must be given for cluster.kind: address, such as tcp://10.0.0.1:8786",
        ),
        ("--cluster.kind=pbs", "cluster.kind: 'pbs' is not allowed: must be one of 'local', 'slurm', 'srun', 'address'"),
        ("--run_dir=", "run_dir: '' is not allowed: must not be empty"),
        ("--data.image={split}/x.tif", "data.image: '{split}/x.tif' is not allowed: must contain {id}"),
        ("--chips-size=3", "chips-size: there is no such key; did you mean chips.size?"),
        (
            "--data.label={id}_{name}.geojson",
            "data.label: '{id}_{name}.geojson' is not allowed: only {split} and {id} can be filled in, there is another opening brace",
        ),
        ("--data.label=", "data.label: '' is not allowed: must not be empty"),
        ("--labels.no_value=road", "labels.no_value: 'road' is not allowed: must be ignore, error or one of data.classes: background, building"),
        ("--labels.no_value=ignore --labels.ignore=['']", "labels.no_value: 'ignore' is not allowed: labels.ignore or labels.class_map says already what null, or empty text, is; leave one of them out"),
        ("--labels.layer=", "labels.layer: '' is not allowed: must not be empty; null says that there is none"),
        ("--data.label={id}.tif --labels.layer=a", "labels.layer: 'a' is not allowed: is for geometries, but data.label ({id}.tif) is a raster; leave it out"),
        ("--labels.class_map={1: building, '1.0': background}", "labels.class_map: {1: 'building', '1.0': 'background'} is not allowed: both keys are one value, which is of one class; leave one of them out"),
        (
            "--data.image=x{id}.tif",
            "data.image: 'x{id}.tif' is not allowed: must contain {split} when there are several splits, else each would "
            "hold the same scenes; or say with split.by how to divide them, or with {split} in chips.aoi",
        ),
        ("--data.classes=[only]", "data.classes: ('only',) is not allowed: must be 2 to 255 names, background first"),
        ("--data.classes=[a,a]", "data.classes: ('a', 'a') is not allowed: must not name a class twice"),
        (
            "--data.classes=[a,b,c]",
            "labels.class_property: null is not allowed: must name the property that tells the 2 classes of geometries apart",
        ),
            ("--chips.size_range=[30,20]", "chips.size_range: (30, 20) is not allowed: must be [smallest, largest], 1 to 65536"),
            ("--chips.size_range=[3]", "chips.size_range: '[3]' is not allowed: must be a list of two whole numbers or null"),
            ("--chips.per_area=0", "chips.per_area: 0.0 is not allowed: must be greater than 0 and at most 1000000 chips for a million pixels, or null"),
            ("--chips.stride=0 --chips.method=grid", "chips.stride: 0 is not allowed: must be 1 to 1000000 pixels, or null"),
            ("--chips.stride=9", "chips.stride: 9 is not allowed: is for chips.method: grid; chips.per_scene or chips.per_area say how many random windows there are"),
            ("--chips.method=grid --chips.size_range=[3,4]", "chips.size_range: (3, 4) is not allowed: is for chips.method: random; leave it out with a grid"),
            ("--chips.method=grid --chips.per_area=2", "chips.per_area: 2.0 is not allowed: is for chips.method: random; a grid's chips.stride says how dense it is"),
            ("--chips.min_valid=1.5", "chips.min_valid: 1.5 is not allowed: must be 0 to 1"),
            ("--chips.min_target_fraction=-1", "chips.min_target_fraction: -1.0 is not allowed: must be 0 to 1"),
            ("--chips.negative_rate=2 --chips.target_classes=[building]", "chips.negative_rate: 2.0 is not allowed: must be 0 to 1"),
    ("--chips.edge=pad", "chips.edge: 'pad' is not allowed: is for chips.method: grid; random windows lie inside their scene"),
            ("--chips.negative_rate=0.5", "chips.negative_rate: 0.5 is not allowed: is for chips.target_classes, which names no class"),
            ("--data.label={split}{id}.tif --labels.buffer=2", "labels.buffer: 2.0 is not allowed: is for geometries, but data.label ({split}{id}.tif) is a raster; leave it out"),
                    ("--chips.max_tries=0", "chips.max_tries: 0 is not allowed: must be 1 to 1000000"),
            ("--chips.aoi={name}.gpkg", "chips.aoi: '{name}.gpkg' is not allowed: only {split} and {id} can be filled in, there is another opening brace"),
            ("--chips.target_classes=[road]", "chips.target_classes: ('road',) is not allowed: must be one of data.classes: background, building"),
            ("--labels.priority=[road]", "labels.priority: ('road',) is not allowed: must be one of data.classes: background, building"),
            ("--labels.priority=[building,building]", "labels.priority: ('building', 'building') is not allowed: must not name a class twice"),
            ("--labels.buffer=-1", "labels.buffer: -1.0 is not allowed: must be 0 to 1000000"),
            ("--labels.buffer={road: 1}", "labels.buffer: {'road': 1.0} is not allowed: must be one of data.classes: background, building"),
            ("--labels.class_map={}", "labels.class_map: {} is not allowed: must map at least one value, or be null"),
            ("--labels.class_map={a:road}", "labels.class_map: '{a:road}' is not allowed: must be a mapping such as {value: name} or null"),
        ("--labels.class_map={a: road}", "labels.class_map: {'a': 'road'} is not allowed: must be one of data.classes: background, building"),
            ("--labels.class_map={a: building} --labels.ignore=[a]", "labels.ignore: ('a',) is not allowed: also stands in labels.class_map; a value is one or the other"),
            ("--data.stack=[height.tif]", "data.stack: 'height.tif' is not allowed: must contain {id}"),
            ("--split.by=manifest", "split.manifest: null is not allowed: must be the path of a table for split.by: manifest"),
            ("--split.by=blocks --data.image=a{id}.tif --data.label=b{id}.tif --data.stack=['{split}{id}.tif']", "data.stack: '{split}{id}.tif' is not allowed: must not contain {split} when split.by: blocks makes the splits"),
            ("--split.fractions={train: 0.5, val: 0.4, test: 0}", "split.fractions: {'train': 0.5, 'val': 0.4, 'test': 0.0} is not allowed: must be shares of at least 0 that add up to 1"),
            ("--split.fractions={train: 1}", "split.fractions: {'train': 1.0} is not allowed: must give a share to each of data.splits: train, val, test"),
            ("--split.block=0", "split.block: 0.0 is not allowed: must be 0.01 to 10000000 metres"),
            ("--split.buffer=-1", "split.buffer: -1.0 is not allowed: must be 0 to 10000000 metres, or null"),
            ("--split.seed=-1", "split.seed: -1 is not allowed: must be 0 to 9223372036854775807 (2**63 - 1)"),
        ("--data.bands=[]", "data.bands: () is not allowed: must be band numbers of at least 1, or null for all"),
        ("--data.bands=[0]", "data.bands: (0,) is not allowed: must be band numbers of at least 1, or null for all"),
        ("--data.bands=[1,1]", "data.bands: (1, 1) is not allowed: must not name a band twice"),
        ("--data.max_bad_scenes=-1", "data.max_bad_scenes: -1 is not allowed: must be 0 to 1000000000"),
    ],
)  # fmt: skip
def test_impossible_values_are_named_with_what_is_allowed(flag, line):
    assert error_lines(*flag.split(" --")[:1], *(f"--{more}" for more in flag.split(" --")[1:])) == [line]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "chips:\n  sizee: 3\ntrain:\n  colour: 1\nfoo: 2\n",
            [
                "chips.sizee: there is no such key; did you mean chips.size?",
                "train.colour: there is no such key; known are train.split, train.val_split, train.epochs, train.batch_size, "
                "train.lr, train.schedule, train.augment, train.freeze_batchnorm, train.seed, train.device, train.save_minutes",
                "foo: there is no such key; known are run_dir, data, labels, split, chips, model, train, infer, cluster",
            ],
        ),
        ("chips: 3\n", ["chips: 3 is not allowed: must be a section with the keys size, method, per_scene, per_area, stride, edge, size_range, aoi, aoi_layer, aoi_within, min_valid, target_classes, min_target_fraction, negative_rate, max_tries, seed, allow_overlap, store; or leave it out"]),
        ("chips:\n", ["chips: null is not allowed: must be a section with the keys size, method, per_scene, per_area, stride, edge, size_range, aoi, aoi_layer, aoi_within, min_valid, target_classes, min_target_fraction, negative_rate, max_tries, seed, allow_overlap, store; or leave it out"]),
        ("chips:\n  size: 3\nchips:\n  seed: 1\n", ["--config: {file} cannot be read: chips stands twice (line 3); join them"]),
        ("", ["--config: {file} holds no keys; see --print_config for those that there are"]),
        ("- a\n", ["--config: {file} holds no keys; see --print_config for those that there are"]),
    ],
)  # fmt: skip
def test_run_files_of_another_shape(tmp_path, text, lines):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert error_lines(f"--config={file}") == [line.replace("{file}", str(file)) for line in lines]


def test_no_test_split_is_needed_to_chip_and_train():
    assert parse("--data.splits=[train]").data.splits == ("train",)


def test_geotiffs_never_lie_in_the_prediction_store():
    assert parse("--infer.store=a/p.zarr").cog_dir == Path("a/p")
    assert parse("--infer.store=a/p").cog_dir == Path("a/p_tif")


def test_splits_are_checked():
    assert (
        "data.splits: ('a/b',) is not allowed: a split's name is made of letters, digits, '_', '-' and '.'"
        in error_lines("--data.splits=[a/b]", "--train.split=a/b")
    )
    assert any("must name at least one split" in line for line in error_lines("--data.splits=[]"))
    assert any("must not name a split twice" in line for line in error_lines("--data.splits=[train,val,test,val]"))
    assert any("a name must not be empty" in line for line in error_lines("--data.classes=['',b]"))


def test_all_impossible_values_of_a_section_are_named_at_once():
    assert len(error_lines("--chips.size=0", "--chips.per_scene=0")) == 2


def test_a_stride_beyond_the_window_is_refused():
    assert error_lines("--infer.window=10", "--infer.stride=11") == [
        "infer.stride: 11 is not allowed: must be at most infer.window (10), else pixels between windows get no prediction"
    ]


def test_a_run_file_that_is_missing_or_no_yaml(tmp_path):
    (line,) = error_lines("--config", tmp_path / "none.yaml")
    assert line.startswith(f"--config: '{tmp_path}/none.yaml' cannot be read: No such file or directory; ")
    assert line.endswith("give the path of a run file")
    broken = tmp_path / "broken.yaml"
    broken.write_text("chips: [\n")
    (line,) = error_lines("--config", broken)
    assert line.startswith(f"--config: {broken} cannot be read: it is no valid YAML: ")


def test_commands_exit_with_2_and_write_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "geochip.chipping", "--run_dir", tmp_path / "run", "--chips.size=0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "geochip: error: chips.size: 0 is not allowed: must be 1 to 16384 pixels\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("a\nb"), 2), (WorkError("a\nb"), 1), (GeochipError("a\nb"), 1), (KeyboardInterrupt(), 130)],
)
def test_errors_become_exit_codes(error, code, capsys):
    def main(argv):
        raise error

    assert run_command(main, []) == code
    text = capsys.readouterr().err
    expected = "geochip: error: a\ngeochip: error: b\n" if code != 130 else "geochip: interrupted; "
    assert text.startswith(expected)


@pytest.mark.parametrize(
    ("text", "here"),
    [
        ("name another partition (cluster.cpu.partition; `sinfo`)", "name another partition (GEOCHIP_CPU_PARTITION; `sinfo`)"),
        ("raise cluster.gpu.memory", "raise GEOCHIP_GPU_MEMORY"),
        ("cluster.gpu.walltime: 1:00", "GEOCHIP_GPU_TIME: 1:00"),
        ("gres of cluster.gpu, or", "gres of GEOCHIP_GPU_..., or"),
        ("cluster.cpu.account", "GEOCHIP_ACCOUNT"),
        ("cluster.cpu.interface", "GEOCHIP_INTERFACE"),
        ("cluster.gpu.interface", "GEOCHIP_GPU_INTERFACE"),
        ("fewer (cluster.workers)", "fewer (GEOCHIP_CHIP_WORKERS or GEOCHIP_INFER_WORKERS)"),
        ("use --cluster.wait_minutes 3", "use GEOCHIP_WAIT_MINUTES 3"),
        ("(cluster.wait_minutes)", "(GEOCHIP_WAIT_MINUTES)"),
        # What site.env does not set.
        ("cluster.max_replacements", None),
        ("cluster.cpu.gres", None),
        ("cluster.gpu.profile", None),
        ("infer.store: /my/cluster.cpu/cluster.sh, dask-cluster.kind", None),
    ],
)  # fmt: skip
def test_started_by_a_batch_script_settings_are_named_as_in_the_site_file(monkeypatch, capsys, text, here):
    def main(argv):
        raise WorkError(text)

    monkeypatch.delenv("GEOCHIP_SITE_FILE", raising=False)
    run_command(main, [])
    assert capsys.readouterr().err == f"geochip: error: {text}\n"
    monkeypatch.setenv("GEOCHIP_SITE_FILE", "/me/site.env")
    run_command(main, [])
    told = text if here is None else f"{here} [GEOCHIP_... are set in /me/site.env]"
    assert capsys.readouterr().err == f"geochip: error: {told}\n"


def test_every_variable_that_is_named_is_one_of_the_site_file():
    names = re.search(r"SITE_VARIABLES=\((.*?)\)", (ROOT / "cluster" / "lib.sh").read_text(), re.DOTALL)[1].split()
    for key, variables in _OF_SITE.items():
        for name in variables.split(" or GEOCHIP_"):
            assert key in ("cpu", "gpu") or name in names
            assert key in ("cpu", "gpu") or f"cluster.{key}" in config_keys()


def test_a_defect_keeps_its_traceback():
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main, [])
    assert run_command(lambda argv: None, []) == 0


@pytest.mark.parametrize(("given", "cpus"), [("1", 1), ("4", 4), ("100", 8), ("", 8), ("0", 8)])
def test_a_job_uses_no_more_cpus_than_slurm_gave_it(monkeypatch, given, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", given)
    assert available_cpus() == cpus
