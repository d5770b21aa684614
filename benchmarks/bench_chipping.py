"""Chipping against a floor: the same work in one plain process, without Dask, Zarr or geochip.

    python benchmarks/bench_chipping.py [--train 1000 --val 50 --test 10] [--rounds 5] [--data DIR]

The floor is a process that reads each scene whole with rasterio, its label with geopandas, rasterizes it, cuts windows,
encodes each chip with Blosc (LZ4, bit shuffle) and writes one file a shard. Against it stands the whole command,
`python -m geochip.chipping`, with one and with two workers: imports, scene catalogue, Dask, Zarr, statistics, checks,
tables. CPU seconds are those of a process with all its children. The sides take turns; medians are printed.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHIPS_PER_SCENE, SIZE, CHIPS_PER_SHARD = 5, 300, 65

FLOOR = """
import sys
from pathlib import Path
import geopandas as gpd, numcodecs, numpy as np, rasterio, rasterio.features
root, out, per_scene, size, shard = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
numcodecs.blosc.set_nthreads(1)
codec = numcodecs.Blosc("lz4", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
rng = np.random.default_rng(0)
for split in ("train", "val", "test"):
    encoded, number = [], 0
    for path in sorted((root / split).glob("*.tif")):
        with rasterio.open(path) as dataset:
            image, transform = dataset.read(), dataset.transform
        label = path.with_name(path.name.replace("RGB-PanSharpen", "buildings")).with_suffix(".geojson")
        shapes = gpd.read_file(label).geometry
        drawn = np.zeros(image.shape[1:], np.uint8)
        if len(shapes):
            drawn = rasterio.features.rasterize(shapes, drawn.shape, transform=transform, dtype="uint8")
        for _ in range(per_scene):
            row, col = (int(rng.integers(length - size + 1)) for length in drawn.shape)
            window = slice(row, row + size), slice(col, col + size)
            encoded.append(codec.encode(np.ascontiguousarray(image[:, *window])))
            encoded.append(codec.encode(np.ascontiguousarray(drawn[window])))
        if len(encoded) >= 2 * shard:
            (out / f"{split}_{number}").write_bytes(b"".join(encoded))
            encoded, number = [], number + 1
    (out / f"{split}_{number}").write_bytes(b"".join(encoded))
"""


def timed(command: list[str]) -> tuple[float, float, float]:
    """(wall, CPU) seconds of a command with all its children, and those that it says it took to cut the chips."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cut = re.search(r"chips cut in ([0-9.]+) s", told)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, float(cut[1]) if cut else 0.0


def chipping(data: Path, run_dir: Path, *flags: str) -> list[str]:
    return [
        sys.executable, "-m", "geochip.chipping", f"--run_dir={run_dir}", f"--data.root={data}",
        f"--chips.per_scene={CHIPS_PER_SCENE}", f"--chips.size={SIZE}", *flags,
    ]  # fmt: skip


def spent(run_dir: Path) -> dict[str, float]:
    """Where the workers' time went, by the journal."""
    total: dict[str, float] = {}
    lines = (run_dir / "chips.zarr.journal").read_text().splitlines()[1:]
    for record in map(json.loads, lines):
        for name, seconds in (record["spent"] | {"tasks": record["seconds"]}).items():
            total[name] = total.get(name, 0) + seconds
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for split, count in (("train", 1000), ("val", 50), ("test", 10)):
        parser.add_argument(f"--{split}", type=int, default=count)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="scenes that geochip.synthetic has made already")
    arguments = parser.parse_args()
    scenes = arguments.train + arguments.val + arguments.test
    with tempfile.TemporaryDirectory() as name:
        root, data = Path(name), arguments.data
        if data is None:
            data = root / "data"
            counts = [f"--{split}={getattr(arguments, split)}" for split in ("train", "val", "test")]
            subprocess.run([sys.executable, "-m", "geochip.synthetic", data, *counts], check=True)
        walls: dict[str, list[float]] = {}
        cpus: dict[str, list[float]] = {}
        cuts: dict[str, list[float]] = {}
        parts: list[dict[str, float]] = []
        for number in range(arguments.rounds + 1):
            out = root / "floor"
            subprocess.run(["rm", "-rf", out, root / "1", root / "2", root / "dry"], check=True)
            out.mkdir()
            shape = map(str, (CHIPS_PER_SCENE, SIZE, CHIPS_PER_SHARD))
            for side, command in (
                ("floor", [sys.executable, "-c", FLOOR, str(data), str(out), *shape]),
                ("one worker", chipping(data, root / "1", "--cluster.workers=1")),
                ("two workers", chipping(data, root / "2", "--cluster.workers=2")),
                ("nothing to do", chipping(data, root / "2", "--cluster.workers=2")),
                ("dry run", chipping(data, root / "dry", "--dry_run")),
                ("one shard of one worker", chipping(data, root / "1", "--cluster.workers=1")),
            ):
                if side == "one shard of one worker":
                    # What is then done again is all but the cutting of the other shards: start-up, and the end.
                    parts += [spent(root / "1")] if number else []
                    for name in ("image/c.0.0.0.0", "label/c.0.0.0"):
                        (root / "1" / "chips.zarr" / "train" / name).unlink()
                os.sync()
                wall, cpu, cut = timed(command)
                if number:  # the first round warms the page cache
                    cuts.setdefault(side, []).append(cut)
                    walls.setdefault(side, []).append(wall)
                    cpus.setdefault(side, []).append(cpu)
        show(scenes, walls, cpus, cuts, parts)


def show(
    scenes: int,
    walls: dict[str, list[float]],
    cpus: dict[str, list[float]],
    cuts: dict[str, list[float]],
    parts: list[dict[str, float]],
) -> None:
    floor, rounds = statistics.median(cpus["floor"]), len(parts)
    print(f"| {scenes} scenes, {scenes * CHIPS_PER_SCENE} chips, median of {rounds} | wall s | CPU s | CPU / floor |")
    print("|---|---|---|---|")
    for side in cpus:
        ratios = [one / other for one, other in zip(cpus[side], cpus["floor"], strict=True)]
        print(
            f"| {side} | {statistics.median(walls[side]):.2f} | {statistics.median(cpus[side]):.2f} | "
            f"{statistics.median(ratios):.2f} |"
        )
    starts = zip(*(cpus[side] for side in ("one worker", "one shard of one worker", "floor")), strict=True)
    without = statistics.median((whole - start) / other for whole, start, other in starts)
    print(
        f"\nWithout what a run of one shard takes (start-up, tables), one worker takes {without:.2f} times the floor."
    )
    for what, seconds in (("the chips are cut", cuts), ("the whole command ends", walls)):
        faster = statistics.median(a / b for a, b in zip(seconds["one worker"], seconds["two workers"], strict=True))
        print(f"\nWith two workers {what} {faster:.2f} times as fast as with one.")
    print()
    print(f"| where the time of one worker goes (floor: {floor:.2f} CPU s) | wall s |")
    print("|---|---|")
    medians = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    tasks, sync = medians.pop("tasks"), medians.pop("sync")
    medians["cut, and the rest of the tasks"] = tasks - sum(medians.values())
    start = statistics.median(walls["dry run"])
    whole_start = statistics.median(walls["one shard of one worker"])
    medians["waiting for the disk, while the next shard is cut"] = sync
    medians["before the cluster: imports, catalogue, plan, audit (a dry run)"] = start
    medians["Dask's start and end, journal, tables"] = statistics.median(walls["one worker"]) - tasks - start
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.2f} |")
    print(f"\nFrom the command to its end with one shard to make: {whole_start:.2f} s.")


if __name__ == "__main__":
    main()
