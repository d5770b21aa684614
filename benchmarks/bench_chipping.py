"""CPU seconds of chipping against a floor: the same work in one plain process, without Dask, Zarr or geochip.

    python benchmarks/bench_chipping.py [--scenes 60] [--rounds 5]

The floor reads each scene whole with rasterio, rasterizes its label, cuts the same windows, encodes each chip with
Blosc (LZ4, bit shuffle) and writes one file a shard. geochip's side is what a Dask worker does, task by task, in this
process. Both are timed in turn, in CPU seconds of this process; medians and the ratio are printed. Scenes are made by
geochip.synthetic, in the tutorial's size.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import geopandas as gpd
import numcodecs
import numpy as np
import rasterio
import rasterio.features

from geochip import synthetic
from geochip.chipping import chip_shard, create_store, store_nodata
from geochip.config import ChipsConfig, DataConfig, InferConfig, RunConfig, TrainConfig
from geochip.plan import ChipPlan, plan_chips
from geochip.scenes import find_scenes


def floor(plan: ChipPlan, directory: Path) -> None:
    codec = numcodecs.Blosc("lz4", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
    for task in plan.tasks():
        encoded = []
        for scene, windows in task.cuts:
            with rasterio.open(scene.image) as dataset:
                image = dataset.read()
                transform = dataset.transform
            shapes = gpd.read_file(scene.label).geometry
            label = np.zeros(image.shape[1:], np.uint8)
            if len(shapes):
                label = rasterio.features.rasterize(shapes, label.shape, transform=transform, dtype="uint8")
            for window in windows:
                encoded.append(codec.encode(np.ascontiguousarray(image[:, *window.slices])))
                encoded.append(codec.encode(np.ascontiguousarray(label[window.slices])))
        (directory / f"{task.split}_{task.start}").write_bytes(b"".join(encoded))


def ours(plan: ChipPlan, config: RunConfig) -> None:
    nodata = store_nodata([scene for split in plan.splits for scene in split.scenes])
    for task in plan.tasks():
        chip_shard(task, str(config.chip_store), config.data, nodata, True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        synthetic.main([str(root / "data"), f"--train={arguments.scenes}", "--val=0", "--test=0"])
        data = DataConfig(root=str(root / "data"), splits=("train",))
        scenes = find_scenes(data).scenes
        plan = plan_chips(scenes, ChipsConfig())
        seconds: dict[str, list[float]] = {"floor": [], "geochip": []}
        for number in range(arguments.rounds + 1):
            config = run_config(root / f"run{number}", data)
            create_store(config.chip_store, plan, config, {"fingerprint": ""})
            (root / f"floor{number}").mkdir()
            for side, work in (
                ("floor", lambda: floor(plan, root / f"floor{number}")),  # noqa: B023
                ("geochip", lambda: ours(plan, config)),  # noqa: B023
            ):
                started = time.process_time()
                work()
                if number:  # the first round warms the page cache
                    seconds[side].append(time.process_time() - started)
            shutil.rmtree(root / f"run{number}")
            shutil.rmtree(root / f"floor{number}")
        medians = {side: statistics.median(values) for side, values in seconds.items()}
        print(f"| {arguments.scenes} scenes, {plan.chips} chips | CPU s, median of {arguments.rounds} | ms a scene |")
        print("|---|---|---|")
        for side, value in medians.items():
            print(f"| {side} | {value:.2f} | {1000 * value / arguments.scenes:.1f} |")
        print(f"| geochip / floor | {medians['geochip'] / medians['floor']:.2f} | |")


def run_config(run_dir: Path, data: DataConfig) -> RunConfig:
    return RunConfig(
        run_dir=str(run_dir), data=data, train=TrainConfig(val_split=None), infer=InferConfig(split="train")
    )


if __name__ == "__main__":
    main()
