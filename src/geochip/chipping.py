"""Cut labelled scenes into chips: GeoTIFF and vector labels in, one Zarr store out.

    python -m geochip.chipping --config run.yaml

The plan comes first: which windows of which scene stand at which position of the store. Then every task fills one
shard: it reads its scenes, rasterizes their labels, cuts both at the planned windows and writes the shard once. The
driver records finished shards in a journal beside the store; a rerun does what is missing.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import geochip
from geochip.cluster import dask_client, require_cluster, run_tasks
from geochip.config import IGNORE, DataConfig, RunConfig
from geochip.errors import run_command
from geochip.labels import LabelError, label_crs, rasterize_label
from geochip.plan import ChipPlan, ChipTask, chips_depend_on, plan_chips
from geochip.progress import ProgressReport
from geochip.run_file import parse_run_config
from geochip.scenes import (
    Catalogue,
    Scene,
    SceneError,
    SceneReader,
    SetAside,
    catalogue_frame,
    find_scenes,
    odd_ones,
    set_aside,
    settle_bad_scenes,
)
from geochip.statistics import PERCENTILES, BandStatistics
from geochip.store import (
    Journal,
    SplitLayout,
    SplitResult,
    create_chip_store,
    finish_chip_store,
    make_header,
    sweep_locks,
    write_shard,
)
from geochip.windows import Window

Record = dict[str, Any]


def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    config, _ = parse_run_config(
        argv, command="chipping", description="Cut labelled scenes into a Zarr store of chips."
    )
    catalogue = usable_scenes(config)
    plan = plan_chips(catalogue.scenes, config.chips)
    for item in catalogue.unlabelled:
        print(f"left out: {item}")
    counts = ", ".join(f"{len(split.windows)} in {split.split}" for split in plan.splits)
    print(f"{len(catalogue.scenes)} scenes, {plan.chips} chips of {config.chips.size} x {config.chips.size} ({counts})")

    store = config.chip_store
    header = make_header(*chips_depend_on(catalogue.scenes, config.data, config.chips, config.train.split))
    if not store.exists():
        require_cluster(config.cluster)
    with Journal.of_store(store, header, option="chips.store") as journal:
        if not store.exists():
            create_store(store, plan, config, header)
        sweep_locks(store)
        records = cut_chips(plan, config, journal)
    finish(store, plan, config, records)
    bad = {(item.split, item.scene_id): item for item in [*catalogue.bad, *scenes_that_failed(records)]}
    catalogue_frame(
        Catalogue(
            scenes=tuple(scene for scene in catalogue.scenes if (scene.split, scene.scene_id) not in bad),
            unlabelled=catalogue.unlabelled,
            bad=tuple(bad.values()),
        )
    ).to_parquet(config.catalogue_path)
    report(config, plan, catalogue, records, list(bad.values()))


def usable_scenes(config: RunConfig) -> Catalogue:
    """The scenes to cut; those whose header or label cannot be used are set aside.

    Raises:
        InputError: when none is left; see `find_scenes`.
    """
    catalogue = find_scenes(config.data)
    faults = [(scene, fault) for scene in catalogue.scenes if (fault := label_fault(scene))]
    catalogue = set_aside(catalogue, faults)
    return set_aside(catalogue, odd_ones(catalogue.scenes))


def label_fault(scene: Scene) -> str | None:
    """What is wrong with a scene's label, as far as its first lines tell; None when nothing is."""
    assert scene.label is not None
    try:
        declared = label_crs(scene.label)
    except LabelError as error:
        return str(error)
    if scene.crs is None and declared is not None:
        return (
            f"{scene.image} has no CRS while label {scene.label} is in {declared.to_string()}, so nothing tells where "
            "the label lies on the image; assign one to the image (gdal_edit.py -a_srs)"
        )
    return None


def create_store(store: Path, plan: ChipPlan, config: RunConfig, header: Record) -> None:
    """Create the store with the whole plan in it and no pixels."""
    first = plan.splits[0].scenes[0]
    scenes = [scene for split in plan.splits for scene in split.scenes]
    sizes = [scene.pixel_size for scene in scenes if scene.pixel_size is not None]
    # What the network may take for nodata is one value; scenes with another one get it in their chips.
    nodata = store_nodata(scenes)
    layouts = [
        SplitLayout(
            name=split.split,
            scene_id=[split.scenes[index].scene_id for index in split.scene_index],
            row_off=np.array([window.row_off for window in split.windows]),
            col_off=np.array([window.col_off for window in split.windows]),
            transform=split.transforms(),
            crs=[split.scenes[index].crs or "" for index in split.scene_index],
            shard=plan.shard,
        )
        for split in plan.splits
    ]
    create_chip_store(
        store,
        layouts,
        bands=len(first.bands),
        size=config.chips.size,
        dtype=first.dtype,
        fill_value=0 if nodata is None or np.isnan(nodata) else nodata,
        classes=config.data.classes,
        attributes={
            "geochip_version": geochip.__version__,
            "config": {"data": asdict(config.data), "chips": {**asdict(config.chips), "store": None}},
            "seed": config.chips.seed,
            "class_names": list(config.data.classes),
            "bands": list(first.bands),
            "band_names": list(first.band_names),
            "dtype": first.dtype,
            # JSON has no NaN.
            "nodata": "NaN" if nodata is not None and np.isnan(nodata) else nodata,
            "chip_size": config.chips.size,
            "pixel_size_range": [min(sizes), max(sizes)] if sizes else None,
            "fingerprint": header["fingerprint"],
        },
    )


def store_nodata(scenes: Sequence[Scene]) -> float | None:
    """The nodata value of a whole store: the first that a scene declares."""
    return next((scene.nodata for scene in scenes if scene.nodata is not None), None)


def cut_chips(plan: ChipPlan, config: RunConfig, journal: Journal) -> dict[str, Record]:
    """Run the tasks whose shards are missing; returns the records of all tasks, by key."""
    keys = [task.key for task in plan.tasks()]
    # A shard with a scene that could not be read is tried again: the file may have been mended.
    done = {key for key in keys if key in journal.records and not journal.records[key]["bad"]}
    if done:
        print(f"{len(done)} of {len(keys)} shards are there already")
    if len(done) == len(keys):
        return journal.records
    nodata = store_nodata([scene for split in plan.splits for scene in split.scenes])
    tasks = (
        (task.key, (task, str(config.chip_store.absolute()), config.data, nodata, task.split == config.train.split))
        for task in plan.tasks()
        if task.key not in done
    )
    chips = {task.key: task.chips for task in plan.tasks()}
    with (
        dask_client(config.cluster) as client,
        ProgressReport("chipping", sum(chips[key] for key in keys if key not in done)) as progress,
    ):

        def on_result(key: str, record: Record) -> None:
            journal.append(key, record)
            progress.advance(chips[key])

        run_tasks(client, chip_shard, tasks, on_result)
    return journal.records


def chip_shard(task: ChipTask, store: str, data: DataConfig, nodata: float | None, with_statistics: bool) -> Record:
    """Fill one shard; runs on a Dask worker.

    Args:
        task: the chips.
        store: path of the store.
        data: classes and class property.
        nodata: the store's nodata value, for pixels that are invalid in a scene with another one.
        with_statistics: count the bands' values, for the normalisation.

    Returns:
        A record for the journal: class pixel counts of each chip, which were written, statistics, scenes that failed.
    """
    started = time.perf_counter()
    images: list[npt.NDArray[Any]] = []
    labels: list[npt.NDArray[np.uint8]] = []
    written: list[bool] = []
    bad: list[Record] = []
    valid: list[npt.NDArray[np.bool_]] = []
    for scene, windows in task.cuts:
        try:
            cut = cut_scene(scene, windows, data, nodata)
        except (SceneError, LabelError) as error:
            bad.append(
                {
                    "scene_id": scene.scene_id,
                    "split": scene.split,
                    "path": scene.image,
                    "reason": reason_of(error, scene),
                }
            )
            cut = [blank_chip(scene, window, nodata) for window in windows]
            written += [False] * len(windows)
        except Exception as error:
            error.add_note(f"while cutting scene {scene.scene_id} ({scene.image}, {scene.label})")
            raise
        else:
            written += [True] * len(windows)
        for image, label, where in cut:
            images.append(image)
            labels.append(label)
            valid.append(where)
    image_cbhw, label_chw = np.stack(images), np.stack(labels)
    size = write_shard(Path(store), task.split, task.start, image_cbhw, label_chw)
    classes = len(data.classes)
    return {
        "class_pixels": [np.bincount(label.ravel(), minlength=classes)[:classes].tolist() for label in labels],
        "written": written,
        "statistics": band_statistics(images, valid) if with_statistics else [],
        "bad": bad,
        "scenes": [f"{scene.split}/{scene.scene_id}" for scene, _ in task.cuts],
        "unread": [f"{scene['split']}/{scene['scene_id']}" for scene in bad],
        "bytes": size,
        "seconds": round(time.perf_counter() - started, 3),
    }


def reason_of(error: Exception, scene: Scene) -> str:
    """What an error says, without the scene's id, which stands before it anyway."""
    return str(error).removeprefix(f"scene {scene.scene_id}: ")


def cut_scene(
    scene: Scene, windows: Sequence[Window], data: DataConfig, nodata: float | None
) -> list[tuple[npt.NDArray[Any], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
    """Cut one scene: for each window (image_bhw, label_hw, valid_hw).

    The image holds the scene's own pixels, bit for bit; only where it is not valid does it hold the store's nodata
    value instead of another one of the scene's. The label is 255 wherever the image is not valid.
    """
    assert scene.label is not None
    with SceneReader(scene) as reader:
        pixels = reader.read_many(windows)
    # The whole label and not each window's: a border pixel gets the class that a rasterization of the scene gives it.
    label = rasterize_label(
        scene.label,
        height=scene.height,
        width=scene.width,
        transform=scene.transform,
        crs=scene.crs,
        classes=data.classes,
        class_property=data.class_property,
    )
    cut = []
    for window, (image, valid) in zip(windows, pixels, strict=True):
        chip_label = np.full((window.height, window.width), IGNORE, np.uint8)
        piece = label[window.slices]
        chip_label[: piece.shape[0], : piece.shape[1]] = piece
        chip_label[~valid] = IGNORE
        if nodata is not None and nodata != scene.nodata and not valid.all():
            image = np.where(valid, image, np.asarray(nodata, image.dtype))
        cut.append((image, chip_label, valid))
    return cut


def blank_chip(
    scene: Scene, window: Window, nodata: float | None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """The chip of a scene that could not be read: nodata, and 255 in the label."""
    shape = (window.height, window.width)
    image = np.full((len(scene.bands), *shape), 0 if nodata is None else nodata, scene.dtype)
    return image, np.full(shape, IGNORE, np.uint8), np.zeros(shape, np.bool_)


def band_statistics(images: Sequence[npt.NDArray[Any]], valid: Sequence[npt.NDArray[np.bool_]]) -> list[list[Any]]:
    """Statistics of each band over the valid pixels of some chips, as JSON."""
    bands = [BandStatistics() for _ in images[0]]
    for image, where in zip(images, valid, strict=True):
        for band, statistics in zip(image, bands, strict=True):
            statistics.add(BandStatistics.of(band[where]))
    return [statistics.to_json() for statistics in bands]


def records_of_split(
    plan: ChipPlan, split: str, records: Mapping[str, Record]
) -> tuple[list[Record], npt.NDArray[np.int64]]:
    """The records of a split's tasks in the order of the plan, and the (chip, class) pixel counts that they hold."""
    tasks = [records[task.key] for task in plan.tasks() if task.split == split]
    return tasks, np.array([chip for record in tasks for chip in record["class_pixels"]], np.int64)


def finish(store: Path, plan: ChipPlan, config: RunConfig, records: Mapping[str, Record]) -> None:
    """Write what the tasks found out into the store: class shares, what was written, the train split's statistics."""
    results = {}
    for split in plan.splits:
        tasks, pixels = records_of_split(plan, split.split, records)
        valid = pixels.sum(axis=1)
        results[split.split] = SplitResult(
            valid_fraction=(valid / config.chips.size**2).astype(np.float32),
            class_fraction=(pixels / np.maximum(valid, 1)[:, None]).astype(np.float32),
            written=np.array([chip for record in tasks for chip in record["written"]], np.bool_),
        )
    finish_chip_store(store, results, {"statistics": statistics_of_split(plan, config, records)})


def statistics_of_split(plan: ChipPlan, config: RunConfig, records: Mapping[str, Record]) -> Record | None:
    """Band and class statistics of the train split, added up in the order of the plan; None when it has no chips."""
    tasks, class_pixels = records_of_split(plan, config.train.split, records)
    if not tasks:
        return None
    bands = [BandStatistics() for _ in plan.splits[0].scenes[0].bands]
    for record in tasks:
        for band, counted in zip(bands, record["statistics"], strict=True):
            band.add(BandStatistics.from_json(counted))
    pixels = class_pixels.sum(axis=0)

    def each(value: Callable[[BandStatistics], float]) -> list[float | None]:
        return [value(band) if band.count else None for band in bands]

    return {
        "split": config.train.split,
        "mean": each(BandStatistics.mean),
        "std": each(BandStatistics.std),
        "min": each(lambda band: band.minimum),
        "max": each(lambda band: band.maximum),
        "percentiles": {str(percent): each(lambda band, p=percent: band.percentile(p)) for percent in PERCENTILES},  # type: ignore[misc]
        "class_pixels": dict(zip(config.data.classes, pixels.tolist(), strict=True)),
        "valid_pixels": int(pixels.sum()),
    }


def scenes_that_failed(records: Mapping[str, Record]) -> list[SetAside]:
    """Scenes whose pixels or labels could not be read, once each."""
    failed = {(bad["split"], bad["scene_id"]): SetAside(**bad) for record in records.values() for bad in record["bad"]}
    return [failed[key] for key in sorted(failed)]


def _no_place(bad: Sequence[SetAside]) -> str:
    if not bad:
        return ""
    names = ", ".join(item.scene_id for item in bad[:5]) + (", ..." if len(bad) > 5 else "")
    return (
        f" (scenes found bad before the chips were planned have no place in the store: {names}; to take them up when "
        "they are mended, remove the store or choose another run_dir)"
    )


def report(
    config: RunConfig, plan: ChipPlan, catalogue: Catalogue, records: Mapping[str, Record], bad: Sequence[SetAside]
) -> None:
    """Print what was made and what was left out.

    Raises:
        WorkError: when more scenes are bad than `data.max_bad_scenes` allows.
    """
    for split in plan.splits:
        tasks, class_pixels = records_of_split(plan, split.split, records)
        pixels = class_pixels.sum(axis=0)
        shares = ", ".join(
            f"{name} {100 * share:.1f} %"
            for name, share in zip(config.data.classes, pixels / max(pixels.sum(), 1), strict=True)
        )
        missing = sum(not chip for record in tasks for chip in record["written"])
        lacking = f", {missing} of them not written" if missing else ""
        print(f"{split.split}: {len(split.windows)} chips of {len(split.scenes)} scenes{lacking}; {shares}")
    size = sum(record["bytes"] for record in records.values())
    print(
        f"{config.chip_store}: {size / 2**20:.1f} MiB of chips; "
        f"open it with xarray.open_datatree({str(config.chip_store)!r})"
    )
    for item in catalogue.unlabelled:
        print(f"left out: {item}")
    settle_bad_scenes(
        bad,
        scenes=len(catalogue.scenes) + len(catalogue.bad),
        allowed=config.data.max_bad_scenes,
        what="used",
        rest="all other chips are there" + _no_place(catalogue.bad),
    )


if __name__ == "__main__":
    # Run under its real name, so that Dask workers find its functions by import.
    from geochip.chipping import main as _main

    sys.exit(run_command(_main))
