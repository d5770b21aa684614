"""GDAL's cache of blocks is bounded in every process that geochip runs in: the value that is in force there."""

import re
import subprocess
import sys

import numpy as np
import pytest
from distributed import Client, LocalCluster
from rasterio.env import get_gdal_config, set_gdal_config

from geochip.chipping import main
from geochip.cluster import dask_client
from geochip.config import ClusterConfig
from geochip.gdal import CACHE_BYTES, bound_cache, cache_in_force
from helpers import ROOT, data_flags, write_scene

# Those that only ask for its version, and this one itself.
NO_READERS = {"geochip.doctor.facts", "geochip.gdal"}


def modules_with_gdal():
    """Names of geochip's modules that import rasterio, or what brings it along."""
    source = ROOT / "src"
    found = {
        ".".join(file.relative_to(source).with_suffix("").parts)
        for file in (source / "geochip").rglob("*.py")
        if re.search(r"^(import|from) (rasterio|rio_cogeo)\b", file.read_text(), re.MULTILINE)
    }
    return sorted(found - NO_READERS)


def in_a_process(code, **environment):
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


SAY = "from rasterio.env import get_gdal_config; print(get_gdal_config('GDAL_CACHEMAX'))"


@pytest.mark.parametrize("module", modules_with_gdal())
def test_whatever_reads_or_writes_rasters_bounds_it_first(module):
    # Also after GDAL has been used in this process, with what somebody's environment says.
    before, after = in_a_process(f"{SAY}\nimport {module}\n{SAY}", GDAL_CACHEMAX="4096")
    assert (int(before), int(after)) == (4096 * 2**20, CACHE_BYTES)


@pytest.mark.parametrize("name", ["chipping", "infer", "evaluate", "synthetic", "doctor.data"])
def test_of_the_commands_that_use_rasters(name):
    assert in_a_process(f"import geochip.{name}\n{SAY}") == [str(CACHE_BYTES)]


def test_a_smaller_bound_stays():
    assert in_a_process(f"import geochip.scenes\n{SAY}", GDAL_CACHEMAX="64") == [str(64 * 2**20)]


def test_opening_a_raster_does_not_lift_it(tmp_path):
    import rasterio

    from geochip.scenes import SceneReader  # noqa: F401 # as every task does

    bound_cache()
    write_scene(tmp_path, "train", "a", np.ones((1, 8, 8), np.uint8))
    with rasterio.open(next(tmp_path.glob("train/*.tif"))) as dataset, rasterio.Env(GDAL_NUM_THREADS=2):
        dataset.read()
        assert cache_in_force() == CACHE_BYTES
    assert cache_in_force() == CACHE_BYTES


def chip(root, *flags):
    write_scene(root / "data", "train", "a")
    main([
        f"--run_dir={root / 'run'}", *data_flags(root / "data", "train"), "--train.val_split=null",
        "--infer.split=train", "--chips.size=24", "--chips.per_scene=4", *flags,
    ])  # fmt: skip


def test_in_a_worker_of_a_cluster_that_was_there_before(tmp_path):
    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        with Client(cluster) as client:
            # What somebody else's task has done there.
            client.run(set_gdal_config, "GDAL_CACHEMAX", 2**32)
            assert set(client.run(get_gdal_config, "GDAL_CACHEMAX").values()) == {2**32}
        chip(tmp_path, "--cluster.kind=address", f"--cluster.address={cluster.scheduler_address}")
        with Client(cluster) as client:
            assert set(client.run(cache_in_force).values()) == {CACHE_BYTES}


def test_in_workers_that_geochip_starts(tmp_path):
    with dask_client(ClusterConfig(workers=1, insecure=True)) as client:
        chip(tmp_path, "--cluster.kind=address", f"--cluster.address={client.scheduler.address}")
        assert set(client.run(cache_in_force).values()) == {CACHE_BYTES}
