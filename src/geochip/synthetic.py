"""Draw a data set of invented neighbourhoods, to try everything without a download.

    python -m geochip.synthetic OUT --train 1000 --val 50 --test 10

It has the layout, the names and the formats of the SpaceNet Las Vegas scenes, and pixel values like theirs; each label
is exactly the roofs as drawn. What a scene shows depends on the seed, its split and its number within the split alone:
neither the number of processes nor that of scenes changes a byte of it.

Axes in names: b band (red, green, blue), h row, w column.
"""

import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio.features
import rasterio.io
import shapely
from affine import Affine
from jsonargparse import ArgumentError, ArgumentParser
from shapely.geometry.base import BaseGeometry

from geochip.config import DataConfig, available_cpus
from geochip.errors import InputError, WorkError, run_command
from geochip.files import write_durably
from geochip.gdal import bound_cache
from geochip.neighbourhood import expose, paint_ground, paint_roofs, plan_neighbourhood
from geochip.progress import ProgressReport

bound_cache()

SPLITS = ("train", "val", "test")
PIXEL_DEGREES = 2.7e-6
NORTH_WEST = (-115.35, 36.25)
"""Longitude and latitude of the first scene's corner, in the north-west of Las Vegas."""
SMALLEST, LARGEST = 64, 4096


@dataclass(frozen=True, kw_only=True)
class SceneTask:
    """One scene to draw."""

    out: str
    """Directory of the data set."""
    split: str
    index: int
    """Number within the split, from 0."""
    size: int
    """Rows and columns, in pixels."""
    seed: int

    @property
    def scene_id(self) -> int:
        """The id, from 1: no two scenes of the data set have the same, and no split's size changes another's ids."""
        return 1 + self.index * len(SPLITS) + SPLITS.index(self.split)

    @property
    def built(self) -> bool:
        """Whether it has buildings: one scene in ten has none."""
        return self.index % 10 != 4

    @property
    def transform(self) -> Affine:
        """From (column, row) to (longitude, latitude): each id has its own cell in a square that grows."""
        shell = math.isqrt(self.scene_id - 1)
        rest = self.scene_id - 1 - shell * shell
        row, col = (rest, shell) if rest < shell else (shell, 2 * shell - rest)
        cell = (self.size + 10) * PIXEL_DEGREES
        west, north = NORTH_WEST[0] + col * cell, NORTH_WEST[1] - row * cell
        return Affine(PIXEL_DEGREES, 0, west, 0, -PIXEL_DEGREES, north)

    def path(self, template: str) -> Path:
        """Path of the image or label, from a template of the run file."""
        return Path(self.out) / template.format(split=self.split, id=self.scene_id)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line, checked."""

    out: str
    counts: dict[str, int]
    size: int
    seed: int
    workers: int
    overwrite: bool

    @property
    def tasks(self) -> list[SceneTask]:
        """The scenes to draw."""
        return [
            SceneTask(out=self.out, split=split, index=index, size=self.size, seed=self.seed)
            for split, count in self.counts.items()
            for index in range(count)
        ]


def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    arguments = parse_arguments(argv)
    check_directory(arguments)
    tasks = arguments.tasks
    buildings = 0
    with ProgressReport("drawing scenes", len(tasks)) as progress:
        for drawn in draw_all(tasks, arguments.workers):
            buildings += drawn
            progress.advance()
    counts = ", ".join(f"{count} {split}" for split, count in arguments.counts.items())
    empty = sum(not task.built for task in tasks)
    print(f"{arguments.out}: {len(tasks)} scenes ({counts}) with {buildings} buildings; scenes without any: {empty}")


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Read the command line.

    Raises:
        InputError: for what cannot be; each line of its text names an argument, its value and what is allowed.
    """
    parser = ArgumentParser(
        prog="python -m geochip.synthetic",
        description="Draw a data set of invented neighbourhoods in the layout of the SpaceNet Las Vegas scenes.",
        exit_on_error=False,
    )
    parser.add_argument("out", type=str, help="directory of the data set; made when it is missing")
    for split, count in zip(SPLITS, (1000, 50, 10), strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"scenes of the {split} split")
    parser.add_argument("--size", type=int, default=650, help=f"rows and columns of a scene, {SMALLEST} to {LARGEST}")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other scenes")
    parser.add_argument("--workers", type=int, default=available_cpus(), help="processes that draw")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files of the same names in OUT; others stay as they are"
    )
    try:
        given = parser.parse_args(list(argv))
    except ArgumentError as error:
        if wrong := re.search(r'Parser key "(\w+)":.*(?:Got|Given) value: (.*)', str(error), re.DOTALL):
            raise InputError(f"--{wrong[1]}: {wrong[2]!r} is not allowed: must be a whole number") from None
        raise InputError(f"{' '.join(str(error).split())}; --help lists the arguments") from None
    counts = {split: int(given[split]) for split in SPLITS}
    rules = [
        *((f"--{split}", count, count >= 0, "must be at least 0 scenes") for split, count in counts.items()),
        ("--size", given.size, SMALLEST <= given.size <= LARGEST, f"must be {SMALLEST} to {LARGEST} pixels"),
        ("--seed", given.seed, given.seed >= 0, "must be at least 0"),
        ("--workers", given.workers, given.workers >= 1, "must be at least 1"),
    ]
    broken = [f"{name}: {value} is not allowed: {allowed}" for name, value, holds, allowed in rules if not holds]
    if not broken and not any(counts.values()):
        broken = ["--train, --val, --test: all are 0, so there is nothing to draw; ask for at least one scene"]
    if broken:
        raise InputError("\n".join(broken))
    return Arguments(
        out=given.out, counts=counts, size=given.size, seed=given.seed, workers=given.workers, overwrite=given.overwrite
    )


def check_directory(arguments: Arguments) -> None:
    """Make the directory of the data set, unless something is there already.

    Raises:
        InputError: when it holds files and `--overwrite` was not given, or when it cannot be made.
    """
    out = Path(arguments.out)
    try:
        if not arguments.overwrite and out.is_dir() and any(out.iterdir()):
            raise InputError(
                f"{out} already holds files, and scenes of two data sets would mix; choose another directory, remove "
                "it, or give --overwrite to replace files of the same names"
            )
        for split in arguments.counts:
            (out / split).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot hold the data set ({error.strerror}); choose another directory") from None


def draw_all(tasks: Sequence[SceneTask], workers: int) -> Iterator[int]:
    """Draw and write scenes in several processes; yields the number of buildings of each, as they finish.

    Raises:
        WorkError: when a scene cannot be written or a process was killed.
    """
    workers = min(workers, len(tasks))
    if workers == 1:
        yield from map(write_scene, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        try:
            yield from _bounded(pool, write_scene, tasks, 4 * workers)
        except BrokenProcessPool:
            raise WorkError(
                "a drawing process was killed, for want of memory perhaps; remove what was drawn, or give --overwrite, "
                "and run the command again with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    # Ctrl-C reaches every process of the terminal: the driver alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker of the pool would wait for ever for a driver that was killed.
    threading.Thread(target=_end_with_driver, daemon=True).start()


def _end_with_driver() -> None:
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)


def _bounded(
    pool: ProcessPoolExecutor, function: Callable[[SceneTask], int], tasks: Iterable[SceneTask], ahead: int
) -> Iterator[int]:
    """Results as they finish, with no more than `ahead` tasks handed out at a time."""
    waiting = iter(tasks)
    running: set[Future[int]] = {pool.submit(function, task) for task in itertools.islice(waiting, ahead)}
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        running |= {pool.submit(function, task) for task in itertools.islice(waiting, len(done))}
        yield from (future.result() for future in done)


def write_scene(task: SceneTask) -> int:
    """Draw one scene and write its image and its label.

    Returns:
        The number of its buildings.

    Raises:
        WorkError: when a file cannot be written.
    """
    image_bhw, outlines = draw_scene(task)
    data = DataConfig()
    image_path, label_path = task.path(data.image), task.path(data.label)
    try:
        with rasterio.io.MemoryFile() as memory:
            # Strips of pixels without compression and without a photometric meaning, as in the real files.
            with memory.open(
                driver="GTiff", count=3, height=task.size, width=task.size, dtype="uint16", crs="EPSG:4326",
                transform=task.transform, interleave="pixel", photometric="MINISBLACK",
            ) as dataset:  # fmt: skip
                dataset.write(image_bhw)
            write_durably(image_path, memory.getbuffer())
        write_durably(label_path, _feature_collection(outlines).encode())
    except OSError as error:
        raise WorkError(
            f"scene {task.scene_id} could not be written to {image_path.parent} ({error.strerror or error}); make room "
            "there or choose another directory, then run the command again (with --overwrite in the same directory)"
        ) from None
    return len(outlines)


def _feature_collection(outlines: Sequence[BaseGeometry]) -> str:
    """GeoJSON of one feature a line, in the form of the real labels."""
    head = (
        '{\n"type": "FeatureCollection",\n'
        '"crs": { "type": "name", "properties": { "name": "urn:ogc:def:crs:OGC:1.3:CRS84" } },\n"features": [\n'
    )
    features = (
        {
            "type": "Feature",
            "properties": {"OBJECTID": number},
            "geometry": shapely.geometry.mapping(shapely.force_3d(outline, 0.0)),
        }
        for number, outline in enumerate(outlines)
    )
    return head + ",\n".join(map(json.dumps, features)) + "\n]\n}\n"


def draw_scene(task: SceneTask) -> tuple[npt.NDArray[np.uint16], list[BaseGeometry]]:
    """Draw one scene.

    Returns:
        The image, uint16 (band, row, column) of 1 to 2047, and the outlines of the buildings in degrees.
    """
    rng = np.random.default_rng([task.seed, SPLITS.index(task.split), task.index])
    plan = plan_neighbourhood(task.size, rng, built=task.built)
    outlines = [to_degrees(building.outline, task.transform) for building in plan.buildings]
    # Drawn from the very coordinates of the label, on the image's own grid: so both have the same pixels.
    roof_hw = _rasterize(list(zip(outlines, itertools.count(1), strict=False)), task.size, task.transform, "int32")
    azimuth = float(rng.uniform(0.3, 1.1))
    sun = (math.sin(azimuth), math.cos(azimuth))
    seen = shapely.intersects([geometry for _, geometry in plan.surfaces], shapely.box(0, 0, task.size, task.size))
    shapes = [(geometry, int(surface)) for surface, geometry in itertools.compress(plan.surfaces, seen)]
    shapes.sort(key=lambda shape: shape[1])
    cover_hw = _rasterize(shapes, task.size, Affine.identity(), "uint8")
    image_bhw = paint_ground(plan, cover_hw, roof_hw, sun, rng)
    paint_roofs(image_bhw, plan.buildings, roof_hw, sun, rng)
    return expose(image_bhw, rng), outlines


def to_degrees(outline: BaseGeometry, transform: Affine) -> BaseGeometry:
    """A geometry in pixels as one in degrees."""
    origin, scale = np.array([transform.c, transform.f]), np.array([transform.a, transform.e])
    return shapely.transform(outline, lambda place: origin + place * scale)


def _rasterize(
    shapes: Sequence[tuple[BaseGeometry, int]], size: int, transform: Affine, dtype: str
) -> npt.NDArray[Any]:
    """Burn values into a square grid of zeros, later shapes over earlier ones."""
    if not shapes:
        return np.zeros((size, size), dtype)
    grid: npt.NDArray[Any] = rasterio.features.rasterize(
        shapes, out_shape=(size, size), transform=transform, fill=0, dtype=dtype
    )
    return grid


if __name__ == "__main__":
    # Run under its real name, so that what goes to other processes is found there by import.
    from geochip.synthetic import main as _main

    sys.exit(run_command(_main))
