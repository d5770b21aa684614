"""Cut labelled scenes into chips: GeoTIFF and labels in, one Zarr store out.

    python -m geochip.chipping --config run.yaml              cut, or go on with a run that was stopped
    python -m geochip.chipping --config run.yaml --dry_run    say what would be done, and stop
    python -m geochip.chipping --config run.yaml --verify     read all chips again and check them
    python -m geochip.chipping --config run.yaml --preview    draw some chips with their labels, chips.png

The plan comes first: how many places each scene has in the store. Then every task fills one shard: it reads its
scenes, draws their labels, cuts both at the scenes' windows and writes the shard once. The driver records finished
shards in a journal beside the store; a rerun does what is missing.
"""

import io
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np

from geochip.chip_audit import audit_overlap
from geochip.chip_labels import describe_labels
from geochip.chip_placement import describe_missed, missed_when_drawn
from geochip.chip_prepare import (
    Prepared,
    judge_overlap,
    outputs_of,
    prepare,
    store_attributes,
    windows_by_scene,
    windows_without_place,
)
from geochip.chip_report import (
    Rates,
    describe_bands,
    describe_faults,
    describe_plan,
    describe_split,
    estimate,
    megabytes,
    result_of_split,
    statistics_of_split,
)
from geochip.chip_table import chips_frame
from geochip.chip_verify import faults_of_shard, faults_of_splits, faults_of_store, shards_to_verify, verify_shard
from geochip.chip_worker import ChipJob, changed_scenes, fill_shards
from geochip.cluster import dask_client, describe_jobs, require_cluster, run_tasks, worker_count
from geochip.config import RunConfig
from geochip.errors import InputError, WorkError, run_command
from geochip.files import write_durably
from geochip.labels import LabelRules, indexed_labels
from geochip.plan import ChipPlan, ChipTask
from geochip.progress import ProgressReport, counted
from geochip.recheck import describe_doubtful, recheck
from geochip.run_file import parse_command
from geochip.scenes import SetAside, catalogue_frame, refuse_read_later
from geochip.store import (
    ChipStore,
    Journal,
    SplitLayout,
    StorePlan,
    chip_records,
    create_chip_store,
    finish_chip_store,
    journal_path,
    other_scenes,
    read_journal,
    refuse_other,
    reopen_chip_store,
    restore_chip_store,
    shards_there,
    sweep_locks,
)

Record = Mapping[str, Any]

_SWITCHES = {
    "dry_run": "say what would be done, and stop",
    "verify": "read the whole store and check it against the journal",
    "preview": "draw some of the store's chips with their labels, as a picture beside it",
}


def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    called = parse_command(
        argv, command="chipping", description="Cut labelled scenes into a Zarr store of chips.", switches=_SWITCHES
    )
    config = called.config
    if len(called.switches) > 1:
        raise InputError(f"--{' and --'.join(sorted(called.switches))} cannot be asked for at once; choose one")
    if "verify" in called.switches:
        verify(config)
    elif "preview" in called.switches:
        preview(config)
    else:
        cut(config, dry_run="dry_run" in called.switches)


def cut(config: RunConfig, *, dry_run: bool = False) -> None:
    """Make the store, or finish it."""
    ready = prepare(config)
    expected = estimate(ready.plan, len(ready.first.bands), ready.first.dtype, config.chips.size)
    describe_plan(ready.plan, ready.catalogue, config, expected)
    describe_missed(ready.missed, len(ready.scenes))
    for doubt in ready.doubts:
        print(f"warning: {doubt}")
    if ready.overlap is not None:
        judge_overlap(ready.overlap, config)
    store = config.chip_store
    if dry_run:
        known, records, _ = read_journal(journal_path(store), chip_records)
        if store.exists() and known is not None:
            refuse_other(known, ready.header, records.unread_scenes(), store=store, option="chips.store")
            mended, doubtful = other_scenes(known, ready.header, records.unread_scenes())
            missing = len({*missing_tasks(ready.plan, store, records), *records.keys_of(mended)})
            print(f"{ready.plan.shards - missing} of {ready.plan.shards} shards are there already")
            if doubtful:
                print(describe_doubtful(len(doubtful)))
        describe_jobs(config.cluster, "cpu", config.run_dir)
        return
    if not store.exists():
        require_cluster(config.cluster, jobs="cpu", run_dir=config.run_dir)
    with Journal.of_store(store, ready.header, option="chips.store", kinds=chip_records) as journal:
        if not store.exists():
            if config.split.by == "blocks":
                # Before the store: once there is one, this says which scene is in which split.
                write_table(catalogue_frame(ready.catalogue), config.catalogue_path)
            create_chip_store(store, store_plan(ready, config))
        cut_chips(ready, config, journal)
        # Not before: writers that an earlier driver left behind, on other machines, may still hold some.
        sweep_locks(store)
        finish(ready, config, journal.records)


def store_plan(ready: Prepared, config: RunConfig) -> StorePlan:
    """What the store is created with, and given back when it was lost."""
    nodata = ready.nodata
    layouts = [
        SplitLayout(
            name=split.split,
            scene_id=[split.scenes[index].scene_id for index in split.scene_index()],
            shard=ready.plan.shard,
        )
        for split in ready.plan.splits
    ]
    return StorePlan(
        layouts=layouts,
        bands=len(ready.first.bands),
        size=config.chips.size,
        dtype=ready.first.dtype,
        fill_value=0 if nodata is None or np.isnan(nodata) else nodata,
        classes=config.data.classes,
        attributes=store_attributes(ready, config),
    )


def missing_tasks(plan: ChipPlan, store: Path, records: Mapping[str, Record]) -> list[str]:
    """Keys of the tasks whose shards are to be made.

    A shard with a scene that could not be read is tried again: the file may have been mended. One whose record is of
    another number of chips is none.
    """
    there = {split.split: shards_there(store, split.split) for split in plan.splits}
    unread = getattr(records, "unread", None)
    return [
        task.key
        for task in plan.tasks()
        if task.key not in records
        or task.start // plan.shard not in there[task.split]
        or (task.key in unread if unread is not None else records[task.key]["unread"])
        or len(records[task.key]["status"]) != task.chips
    ]


def cut_chips(ready: Prepared, config: RunConfig, journal: Journal) -> None:
    """Run the tasks whose shards are missing, once those that are there are known to be of the same scenes.

    Raises:
        InputError: when a scene has changed since.
    """
    plan, store = ready.plan, config.chip_store
    keys = {task.key for task in plan.tasks()}
    journal.forget(set(journal.records) - keys)
    missing = {*missing_tasks(plan, store, journal.records), *journal.dropped} & keys
    if len(missing) < plan.shards:
        print(f"{plan.shards - len(missing)} of {plan.shards} shards are there already")
    doubtful = doubtful_tasks(plan, store, journal)
    whole = store_plan(ready, config)
    if not missing and not doubtful:
        journal.settle({}, store=store, option="chips.store")
        restore_chip_store(store, whole)
        reopen_chip_store(store)
        return
    # What workers read of the store to compare it; all else waits until it is known that it is not refused.
    restore_chip_store(store, whole, whole=False)
    labels = [scene.label for scene in ready.catalogue.scenes if scene.label is not None]
    directory = store.with_name(f"{store.name}.labels")
    with indexed_labels(labels, directory, option="chips.store", layer=config.labels.layer) as instead:
        job = ChipJob(
            store=str(store.absolute()),
            chips=config.chips,
            rules=LabelRules(classes=config.data.classes, labels=config.labels),
            labels=instead,
            bands=len(ready.first.bands),
            dtype=ready.first.dtype,
            nodata=ready.nodata,
            statistics_of=config.train.split,
        )
        with dask_client(config.cluster, jobs="cpu", run_dir=config.run_dir) as client:
            if doubtful:
                recheck(
                    client,
                    journal,
                    comparisons(job, plan, doubtful, journal.doubtful),
                    changed_scenes,
                    store=store,
                    option="chips.store",
                )
            else:
                # Nothing was made of doubtful scenes so far.
                journal.settle({}, store=store, option="chips.store")
            # Not before: a store that is refused stays as it is.
            restore_chip_store(store, whole)
            reopen_chip_store(store)
            if missing:
                fill(client, job, plan, missing, journal)


def doubtful_tasks(plan: ChipPlan, store: Path, journal: Journal) -> list[ChipTask]:
    """Tasks whose shards are there and hold chips of doubtful scenes."""
    if not journal.doubtful_keys:
        return []
    there = {split.split: shards_there(store, split.split) for split in plan.splits}
    return [
        task
        for task in plan.tasks()
        if task.key in journal.doubtful_keys and task.start // plan.shard in there[task.split]
    ]


def comparisons(
    job: ChipJob, plan: ChipPlan, tasks: Sequence[ChipTask], doubtful: Collection[str]
) -> Iterator[tuple[str, tuple[Any, ...], Collection[str]]]:
    """What `recheck` takes: some shards at a time, with the scenes to look at."""
    for group in batches(iter(tasks), plan.shards_per_task):
        names = frozenset(cut.scene.name for task in group for cut in task.cuts) & frozenset(doubtful)
        yield f"compare/{group[0].key}", (job, group, names), names


def fill(client: Any, job: ChipJob, plan: ChipPlan, missing: Collection[str], journal: Journal) -> None:
    """Fill shards."""
    to_do = (task for task in plan.tasks() if task.key in missing)
    calls = ((group[0].key, (job, group)) for group in batches(to_do, plan.shards_per_task))
    chips = sum(task.chips for task in plan.tasks() if task.key in missing)
    with ProgressReport("chipping", chips) as progress:
        rates = Rates(lambda: worker_count(client))

        def on_result(key: str, records: Sequence[dict[str, Any]]) -> None:
            for record in records:
                journal.append(record.pop("key"), record)
                progress.advance(len(record["status"]), rates.note(record))

        started = time.monotonic()
        run_tasks(client, fill_shards, calls, on_result)
        print(f"{chips} chips cut in {time.monotonic() - started:.1f} s")


def batches(tasks: Iterator[ChipTask], size: int) -> Iterator[tuple[ChipTask, ...]]:
    """Some at a time, in their order."""
    while group := tuple(islice(tasks, size)):
        yield group


def finish(ready: Prepared, config: RunConfig, records: Mapping[str, Record]) -> None:
    """Write what the tasks found out into the store, the tables beside it, and tell it.

    Raises:
        WorkError: when chips of different splits overlap, or no label of a split meets its scene, where that shows only
            now, or when more scenes are bad than `data.max_bad_scenes` allows.
    """
    plan, store, classes = ready.plan, config.chip_store, config.data.classes
    by_split = {split.split: [task.key for task in plan.tasks() if task.split == split.split] for split in plan.splits}

    def records_of(split: str) -> Iterator[Record]:
        return (records[key] for key in by_split.get(split, ()))

    results = {
        split.split: result_of_split(split, records_of(split.split), config.chips.size, len(classes))
        for split in plan.splits
    }
    overlap = ready.overlap
    if overlap is None:
        cut_windows = windows_by_scene(plan, results)
        overlap = audit_overlap(plan, config.train.split, lambda scene: cut_windows[scene.split, scene.scene_id])
        judge_overlap(overlap, config, WorkError)
    missed = missed_when_drawn(plan, records.values(), config, ready.missed)
    statistics = statistics_of_split(
        records_of(config.train.split), config.train.split, len(ready.first.bands), classes
    )
    attributes = {**store_attributes(ready, config), "statistics": statistics, "overlap": overlap.to_json()}
    finish_chip_store(store, results, attributes)
    failed = {(bad["split"], bad["scene_id"]): SetAside(**bad) for record in records.values() for bad in record["bad"]}
    bad = {**{(item.split, item.scene_id): item for item in ready.catalogue.bad}, **dict(sorted(failed.items()))}
    good = tuple(scene for scene in ready.catalogue.scenes if (scene.split, scene.scene_id) not in bad)
    write_table(catalogue_frame(replace(ready.catalogue, scenes=good, bad=tuple(bad.values()))), config.catalogue_path)
    reasons = {f"{split}/{scene_id}": item.reason for (split, scene_id), item in bad.items()}
    write_table(chips_frame(ChipStore(store), reasons), config.chip_table_path)
    for split in plan.splits:
        describe_split(split, results[split.split], classes)
    describe_labels(config, results, records.values())
    describe_bands(statistics, ready.first.band_names)
    size, peak = sum(one["bytes"] for one in records.values()), max(one["peak_bytes"] for one in records.values())
    print(
        f"{store}: {megabytes(size)} of chips, made by workers of at most {megabytes(peak)}; open it with "
        f"xarray.open_datatree({str(store)!r}), see some with --preview, or open {config.chip_table_path} in QGIS"
    )
    describe_missed(missed, len(ready.scenes))
    describe_faults(
        config,
        ready.catalogue,
        list(bad.values()),
        mended=sum(record["mended"] for record in records.values()),
        met=sum(record["met"] for record in records.values()),
        no_place=windows_without_place(ready, config),
    )


def write_table(frame: gpd.GeoDataFrame, path: Path) -> None:
    """Write a GeoParquet file whole or not at all."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    write_durably(path, buffer.getbuffer())


def finished_store(config: RunConfig) -> ChipStore:
    """The store of a run.

    Raises:
        InputError: when there is none, or one that is not finished.
    """
    store = ChipStore(config.chip_store)
    if not store.attrs["complete"]:
        raise InputError(f"{store.path} is not complete; run python -m geochip.chipping again, which goes on with it")
    return store


def verify(config: RunConfig) -> None:
    """Read a finished store whole, and compare it with its journal.

    Raises:
        InputError: when there is no finished store.
        WorkError: when something is wrong with it.
    """
    store = finished_store(config)
    known, records, _ = read_journal(journal_path(store.path), chip_records)
    if known is None:
        raise InputError(
            f"{journal_path(store.path)} is not there, which says what {store.path} should hold; copy it along with "
            "the store, or make the store anew"
        )
    broken = faults_of_splits(store)
    faults = [
        *(f"{records.path}: line {number} is damaged ({why}); run python -m geochip.chipping again"
          for number, why in records.damaged.items()),
        *broken.values(),
    ]  # fmt: skip
    if store.attrs["fingerprint"] != known["fingerprint"]:
        faults.append(
            f"{store.path}: its fingerprint is {store.attrs['fingerprint']!r}, by the journal "
            f"{known['fingerprint']!r}; run python -m geochip.chipping again, which writes it anew"
        )
    checked: dict[str, Any] = {}
    shards = shards_to_verify(store, broken)
    calls = (
        (key, (str(store.path.absolute()), split, start, stop, len(store.attrs["class_names"])))
        for key, split, start, stop in shards
    )
    with (
        dask_client(config.cluster, jobs="cpu", run_dir=config.run_dir) as client,
        ProgressReport("verifying", len(shards)) as progress,
    ):

        def on_result(key: str, record: dict[str, Any]) -> None:
            checked[key] = record
            faults.extend(faults_of_shard(records.get(key), record))
            progress.advance(1, f"{len(faults)} faults" if faults else None)

        run_tasks(client, verify_shard, calls, on_result)
    faults += faults_of_store(store, records, checked, broken)
    if faults:
        raise WorkError("\n".join([*faults, f"{store.path} has {counted(len(faults), 'fault')} (see above)"]))
    print(
        f"{store.path}: {len(shards)} shards read; checksums, journal, positions and statistics are as they should be"
    )


def preview(config: RunConfig) -> None:
    """Draw some chips of a finished store."""
    store = finished_store(config)
    # Draws with Pillow, which nothing else needs.
    from geochip.chip_preview import contact_sheet

    path = config.chip_store.with_suffix(".png")
    outputs = outputs_of(config)
    refuse_read_later(config, replace(outputs, files={path: "the picture of chips"}, stores=()))
    drawn = contact_sheet(store, path)
    print(f"{path}: {drawn} chips with their labels")


if __name__ == "__main__":
    # Run under its real name, so that Dask workers find its functions by import.
    from geochip.chipping import main as _main

    sys.exit(run_command(_main))
