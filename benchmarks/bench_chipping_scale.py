"""What chipping costs at sizes that one would not try in a test: one huge scene, very many scenes, very many tasks.

    python benchmarks/bench_chipping_scale.py [scene] [plan] [tasks]

scene   the same number of windows from tiled GeoTIFFs of growing size: peak memory of the worker, seconds
plan    a plan over 100,000 scene records without files: seconds and memory
tasks   50,000 tasks without pixels through a LocalCluster: memory of the driver as they pass
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import rasterio
from affine import Affine

from geochip.chip_audit import audit_overlap
from geochip.chip_report import estimate
from geochip.cluster import dask_client, run_tasks
from geochip.config import ChipsConfig, ClusterConfig, RunConfig
from geochip.plan import chips_depend_on, plan_chips
from geochip.scenes import Scene
from geochip.store import Journal, make_header

GRID = Affine(0.3, 0, 600_000, 0, -0.3, 4_000_000)


def make_scene(root: Path, side: int) -> None:
    """A tiled GeoTIFF of 3 bands of uint16, and a label with a square every 100 pixels."""
    directory = root / "train"
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with rasterio.open(
        directory / "scene_1.tif", "w", driver="GTiff", count=3, height=side, width=side, dtype="uint16",
        crs="EPSG:32611", transform=GRID, tiled=True, blockxsize=512, blockysize=512, compress="deflate", zlevel=1,
    ) as dataset:  # fmt: skip
        for row in range(0, side, 512):
            height = min(512, side - row)
            strip = rng.integers(200, 1200, (3, height // 8 + 1, side // 8 + 1), dtype=np.uint16)
            strip = strip.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :side]
            dataset.write(strip, window=rasterio.windows.Window(0, row, side, height))
    features = []
    for row in range(0, side, 100):
        for col in range(0, side, 100):
            ring = [GRID @ (col + dx, row + dy) for dx, dy in ((10, 10), (50, 10), (50, 50), (10, 50), (10, 10))]
            geometry = {"type": "Polygon", "coordinates": [ring]}
            features.append({"type": "Feature", "properties": {}, "geometry": geometry})
    crs = {"type": "name", "properties": {"name": "EPSG:32611"}}
    document = {"type": "FeatureCollection", "crs": crs, "features": features}
    (directory / "label_1.geojson").write_text(json.dumps(document))


def scene(root: Path) -> None:
    print("| scene | chips | read whole it would be | peak of the worker | wall s |")
    print("|---|---|---|---|---|")
    for side in (2_500, 5_000, 10_000, 20_000):
        data, run = root / f"data{side}", root / f"run{side}"
        make_scene(data, side)
        started = time.perf_counter()
        subprocess.run(
            [
                sys.executable, "-m", "geochip.chipping", f"--run_dir={run}", f"--data.root={data}",
                "--data.splits=[train]", "--data.image={split}/scene_{id}.tif",
                "--data.label={split}/label_{id}.geojson", "--cluster.workers=1", "--train.val_split=null",
                "--chips.per_scene=1000",
            ],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        wall = time.perf_counter() - started
        records = [json.loads(line) for line in (run / "chips.zarr.journal").read_text().splitlines()[1:]]
        peak, chips = max(record["peak_bytes"] for record in records), sum(len(record["status"]) for record in records)
        whole = side * side * 7
        print(
            f"| {side} x {side} | {chips} | {whole / 2**20:.0f} MiB | {peak / 2**20:.0f} MiB | {wall:.1f} |", flush=True
        )


def record_of(number: int) -> Scene:
    """A scene of the tutorial's size, without files."""
    return Scene(
        scene_id=str(number), split=("train", "val")[number % 10 == 0], image=f"{number}.tif", stack=(), label=None,
        height=650, width=650, count=3, dtype="uint16", crs="EPSG:32611",
        transform=GRID @ Affine.translation(700 * (number % 400), 700 * (number // 400)), nodata=None, bands=(1, 2, 3),
        band_names=("red", "green", "blue"), pixel_size=0.3, image_bytes=2_000_000, label_bytes=30_000,
    )  # fmt: skip


def plan(root: Path) -> None:
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    config = RunConfig(chips=ChipsConfig(per_scene=5))
    scenes = {(one.split, one.scene_id): one for one in map(record_of, range(100_000))}
    planned = plan_chips(sorted(scenes), scenes, config.chips)
    header = make_header(*chips_depend_on(planned, config))
    audit_overlap(planned, "train", lambda scene: [])
    expected = estimate(planned, 3, "uint16", 300)
    tasks = sum(task.chips for task in planned.tasks())
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("| scenes | chips | tasks | plan, header, audit, tasks | memory for it | of the process |")
    print("|---|---|---|---|---|---|")
    assert tasks == planned.chips
    assert len(header["scenes"]) == 100_000
    print(
        f"| 100,000 | {planned.chips} | {expected.tasks} | {wall:.1f} s | {(after - before) / 2**20:.0f} MiB | "
        f"{after / 2**20:.0f} MiB |"
    )


def no_pixels(number: int) -> dict[str, object]:
    """A record as large as a real one, for nothing."""
    chips = 65
    return {
        "windows": [[number % 350, 17, 300]] * chips, "status": [0] * chips, "written": [True] * chips,
        "class_pixels": [[80_000, 10_000]] * chips,
        "statistics": [[1, 2, 3, 4, 5, list(range(400)), [number] * 400]] * 3,
        "bad": [], "scenes": [f"train/{number}"] * 13, "unread": [], "mended": 0, "met": 0, "bytes": 1, "seconds": 1.0,
    }  # fmt: skip


def tasks(root: Path) -> None:
    total, started = 50_000, time.perf_counter()
    store = root / "chips.zarr"
    memory: dict[int, int] = {}
    process = psutil.Process()
    header = make_header({}, {})
    with (
        Journal.of_store(store, header, option="chips.store") as journal,
        dask_client(ClusterConfig(workers=2)) as client,
    ):

        def on_result(key: str, record: dict[str, object]) -> None:
            journal.append(key, record)
            if len(journal.records) % 10_000 == 0 or len(journal.records) == 1_000:
                memory[len(journal.records)] = process.memory_info().rss

        run_tasks(client, no_pixels, ((f"train/{number}", (number,)) for number in range(total)), on_result)
    wall = time.perf_counter() - started
    print(f"| tasks done ({total} in {wall:.0f} s, {1000 * wall / total:.2f} ms each) | memory of the driver |")
    print("|---|---|")
    for done, size in memory.items():
        print(f"| {done} | {size / 2**20:.0f} MiB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="scene, plan, tasks; all of them by default")
    # As Dask's workers have it: not a share of the machine's memory.
    os.environ.setdefault("GDAL_CACHEMAX", "256")
    known = {"scene": scene, "plan": plan, "tasks": tasks}
    for part in parser.parse_args().parts or known:
        with tempfile.TemporaryDirectory() as name:
            known[part](Path(name))
        print(flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    # Under its own name, so that Dask workers can import what they are to run.
    from bench_chipping_scale import main as _main

    _main()
