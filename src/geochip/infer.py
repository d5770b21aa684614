"""Predict whole scenes: a model and GeoTIFFs in, one prediction store and cloud-optimised GeoTIFFs out.

    python -m geochip.infer --config run.yaml                  # the scenes of infer.split
    python -m geochip.infer --config run.yaml scene.tif ...    # these images
    python -m geochip.infer --config run.yaml --dry_run        # say what would be done, and stop
    python -m geochip.infer --config run.yaml --verify         # read all predictions again and check them

A task owns blocks of the scenes. It runs every window of a scene's grid that touches a block, blends them and writes
the block alone (see `geochip.blending`): memory does not grow with a scene, no byte depends on the number of workers.
The driver records finished blocks in a journal beside the store; a rerun does what is missing.
"""

import contextlib
import math
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geochip.cluster import dask_client, describe_jobs, require_cluster, run_tasks
from geochip.config import ClusterConfig, RunConfig, available_cpus
from geochip.errors import InputError, WorkError, run_command
from geochip.gpus import usable
from geochip.infer_plan import InferPlan, plan_inference
from geochip.infer_state import State, finished_scenes, grids_of, header_of, look, store_settings
from geochip.infer_verify import (
    blocks_to_verify,
    expected_scenes,
    faults_of_groups,
    unknown_records,
    verify_blocks,
    verify_cogs,
)
from geochip.infer_worker import Job, Piece, Record, changed_scenes, predict_pieces, write_some_cogs
from geochip.progress import ProgressReport, counted
from geochip.recheck import recheck
from geochip.run_file import parse_command
from geochip.scenes import SetAside, settle_bad_scenes
from geochip.store import (
    Journal,
    PredictedScene,
    PredictionStore,
    journal_path,
    prediction_records,
    read_journal,
    sweep_locks,
)
from geochip.store.cog import cog_path, sweep_cogs

# Small blocks share a task when there are more of them: every task costs the scheduler up to a millisecond.
_MOST_TASKS = 20_000
# Of a verification, whose blocks take a few milliseconds.
_VERIFY_TASKS = 2_000
# One worker reads and writes while another one computes; more would only fill the GPU's memory with the same model.
_WORKERS_PER_GPU = 2


def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    called = parse_command(
        argv,
        command="infer",
        description="Predict whole scenes with a trained model.",
        files="images to predict; none: the scenes of infer.split",
        switches={
            "dry_run": "say what would be done, and stop",
            "verify": "read the whole store and the GeoTIFFs and check them against the journal",
        },
    )
    config = called.config
    if len(called.switches) > 1:
        raise InputError(f"--{' and --'.join(sorted(called.switches))} cannot be asked for at once; choose one")
    if "verify" in called.switches:
        verify(config)
        return
    check_device(config)
    plan = plan_inference(config, called.files or config.infer.files)
    for warning in plan.warnings:
        print(f"warning: {warning}")
    for line in plan.notices:
        print(line)
    sliding = plan.sliding
    print(
        f"{counted(len(plan.scenes), 'scene')}, {counted(plan.windows, 'window')} of {sliding.size} x {sliding.size} "
        f"pixels, {sliding.stride} pixels apart"
    )
    if plan.squares is not None:
        print(
            f"blocks of {plan.squares.side:g} m divide the scenes between {', '.join(plan.squares.owners)}: they are "
            "predicted whole, and geochip.evaluate counts the blocks of infer.split"
        )
    if "dry_run" in called.switches:
        describe_jobs(config.cluster, "gpu", config.run_dir)
        return
    store = config.prediction_store
    header = header_of(plan, store)
    if not store.exists():
        require_cluster(config.cluster, jobs="gpu", run_dir=config.run_dir)
    with Journal.of_store(store, header, option="infer.store", kinds=prediction_records, grows=True) as journal:
        if not store.exists():
            PredictionStore.create(store, grids_of(plan), **store_settings(plan, header["fingerprint"]))
        sweep_locks(store)
        failed = work(plan, store, journal)
        report(plan, journal, failed)
    settle_bad_scenes(
        [*plan.bad, *failed.values()],
        scenes=len(plan.scenes) + len(plan.bad),
        allowed=config.data.max_bad_scenes,
        what="read",
        rest="all others are predicted",
    )


def verify(config: RunConfig) -> None:
    """Read a finished store whole, and compare it with its journal; and the GeoTIFFs with the store.

    Raises:
        InputError: when there is no finished store.
        WorkError: when something is wrong with it.
    """
    store, path = PredictionStore(config.prediction_store), str(config.prediction_store.absolute())
    if not store.complete:
        raise InputError(f"{store.path} is not complete; run python -m geochip.infer again, which goes on with it")
    header, records, _ = read_journal(journal_path(store.path), prediction_records)
    if header is None:
        raise InputError(
            f"{journal_path(store.path)} is not there, which says what {store.path} should hold; copy it along with "
            "the store, or make the store anew"
        )
    faults = [
        f"{records.path}: line {number} is damaged ({why}); run python -m geochip.infer again"
        for number, why in records.damaged.items()
    ]
    scenes = expected_scenes(store, header, records)
    faults += faults_of_groups(store, scenes)
    some = list(blocks_to_verify(store, scenes, records))
    cogs = [scene for scene in scenes if config.infer.cog and f"cog/{scene.scene_id}" in records]
    faults += unknown_records(store, scenes, records)
    with (
        dask_client(config.cluster, jobs="cpu", run_dir=config.run_dir) as client,
        ProgressReport("verifying", len(some) + len(cogs)) as progress,
    ):

        def on_result(key: str, found: list[str]) -> None:
            faults.extend(found)
            progress.advance(sizes[key], f"{len(faults)} faults" if faults else None)

        for what, call, items, more in (
            ("blocks", verify_blocks, some, ()), ("cogs", verify_cogs, cogs, (str(config.cog_dir.absolute()),)),
        ):  # fmt: skip
            parts = {f"verify-{what}-{number}": part for number, part in enumerate(_shared_out(items, _VERIFY_TASKS))}
            sizes = {key: len(part) for key, part in parts.items()}
            run_tasks(client, call, ((key, (path, *more, part)) for key, part in parts.items()), on_result)
    if faults:
        raise WorkError("\n".join([*faults, f"{store.path} has {counted(len(faults), 'fault')} (see above)"]))
    read = f"{counted(len(some), 'block')} and {counted(len(cogs), 'GeoTIFF')} read"
    print(f"{store.path}: {read}; checksums, journal and scenes are as they should be")


def check_device(config: RunConfig) -> None:
    """Raise `InputError` when a GPU is asked for on a machine without one; elsewhere only workers can tell."""
    if config.cluster.kind == "local":
        usable(config.infer.device, "infer.device")


def work(plan: InferPlan, store: Path, journal: Journal) -> dict[str, SetAside]:
    """Do what is missing of the store and of the GeoTIFFs.

    Returns:
        The scenes that could not be read, by id.
    """
    started = time.perf_counter()
    failed: dict[str, SetAside] = {}
    state = look(plan, store, journal)
    missing = state.to_do
    describe_missing(missing, len(state.pieces))
    doubtful = doubtful_pieces(state, journal)
    with contextlib.ExitStack() as stack:
        # No cluster is started to find that there is nothing to do.
        client = None
        if missing or doubtful or missing_cogs(plan, state.places, journal, failed):
            cluster = cluster_for(plan.config)
            client = stack.enter_context(dask_client(cluster, jobs="gpu", run_dir=plan.config.run_dir))
        if client is not None and doubtful:
            tasks = comparisons(plan, store, doubtful)
            recheck(client, journal, tasks, changed_scenes, store=store, option="infer.store")
        else:
            # Nothing was made of doubtful scenes so far.
            journal.settle({}, store=store, option="infer.store")
        # Not before: a store that is refused stays as it is.
        predictions = PredictionStore.bring_up_to_date(
            store, list(state.places.values()), finished=not missing,
            **store_settings(plan, journal.header["fingerprint"]),
        )  # fmt: skip
        if client is not None and missing:
            failed = predict_pieces_on(client, plan, store, missing, journal)
            now = {piece.scene.scene_id for piece in missing} - set(failed)
            seconds = time.perf_counter() - started
            windows = sum(
                plan.sliding.count(scene.height, scene.width) for scene in plan.scenes if scene.scene_id in now
            )
            print(
                f"predicted {counted(len(now), 'scene')}, {counted(windows, 'window')}, in {seconds:.1f} s: "
                f"{len(now) / seconds:.3g} scenes/s"
            )
        predictions.finish(finished_scenes(state, list(failed)))
        if client is not None and (cogs := missing_cogs(plan, state.places, journal, failed)):
            write_cogs_on(client, plan, predictions, cogs, journal)
    if plan.config.infer.cog:
        # Of workers that were killed, in this run or an earlier one; those of this run have ended.
        sweep_cogs(plan.config.cog_dir, predictions)
    return failed


def doubtful_pieces(state: State, journal: Journal) -> list[tuple[Piece, int]]:
    """The finished blocks of scenes whose files were written or copied since, each with its checksum."""
    return [
        (piece, journal.records[piece.key]["pixels"])
        for piece in (state.pieces if journal.doubtful_keys else ())
        if piece.key in journal.doubtful_keys and "pixels" in journal.records[piece.key]
    ]


def comparisons(
    plan: InferPlan, store: Path, pieces: Sequence[tuple[Piece, int]]
) -> Iterator[tuple[str, tuple[Any, ...], Collection[str]]]:
    """What `recheck` takes: some blocks at a time, and whose they are."""
    job = job_of(plan, store)
    for number, some in enumerate(_shared_out(pieces)):
        yield f"compare-{number}", (job, some), {piece.scene.scene_id for piece, _ in some}


def job_of(plan: InferPlan, store: Path) -> Job:
    """What all tasks of a run need to know."""
    config = plan.config
    return Job(
        bundle=str(config.bundle_dir.absolute()), model_sha256=plan.model_sha256, device=config.infer.device,
        store=str(store.absolute()), sliding=plan.sliding, nodata=plan.contract.nodata,
        probability=config.infer.probability, block=config.infer.block,
    )  # fmt: skip


def describe_missing(missing: Sequence[Piece], blocks: int) -> None:
    """Say how much is there already."""
    if not missing:
        print("all of them are predicted already")
    elif len(missing) < blocks:
        print(f"{blocks - len(missing)} of {blocks} blocks are there already")


def predict_pieces_on(
    client: Any, plan: InferPlan, store: Path, pieces: Sequence[Piece], journal: Journal
) -> dict[str, SetAside]:
    """Predict blocks on the cluster; returns the scenes that could not be read, by id."""
    job = job_of(plan, store)
    scenes = {piece.key: piece.scene for piece in pieces}
    failed: dict[str, SetAside] = {}
    with ProgressReport("predicting blocks", len(pieces)) as progress:

        def on_result(_: str, records: dict[str, Record]) -> None:
            for key, record in records.items():
                scene = scenes[key]
                if "error" in record:
                    failed[scene.scene_id] = SetAside(
                        scene_id=scene.scene_id, split=scene.split, path=scene.image, reason=record["error"]
                    )
                    record["unread"] = [scene.scene_id]
                journal.append(key, {**record, "scenes": [scene.scene_id]})
            progress.advance(len(records))

        tasks = ((f"predict-{number}", (job, number, some)) for number, some in enumerate(_shared_out(pieces)))
        run_tasks(client, predict_pieces, tasks, on_result)
    return failed


def cluster_for(config: RunConfig) -> ClusterConfig:
    """The configured cluster; by default not more local workers than the GPUs of this machine can feed."""
    cluster = config.cluster
    gpus = torch.cuda.device_count() if config.infer.device != "cpu" and torch.cuda.is_available() else 0
    if cluster.kind != "local" or cluster.workers is not None or not gpus:
        return cluster
    return replace(cluster, workers=min(available_cpus(), gpus * _WORKERS_PER_GPU))


def _shared_out(items: Sequence[Any], most: int = _MOST_TASKS) -> Iterator[Sequence[Any]]:
    each = max(1, math.ceil(len(items) / most))
    for start in range(0, len(items), each):
        yield items[start : start + each]


def missing_cogs(
    plan: InferPlan, places: Mapping[str, PredictedScene], journal: Journal, failed: Mapping[str, SetAside]
) -> list[PredictedScene]:
    """The scenes that have no GeoTIFF and shall have one."""
    if not plan.config.infer.cog:
        return []
    return [
        places[scene.scene_id]
        for scene in plan.scenes
        if scene.scene_id not in failed
        and not (f"cog/{scene.scene_id}" in journal.records and cog_path(plan.config.cog_dir, scene.scene_id).is_file())
    ]


def write_cogs_on(
    client: Any, plan: InferPlan, predictions: PredictionStore, scenes: Sequence[PredictedScene], journal: Journal
) -> None:
    """Write GeoTIFFs on the cluster."""
    directory = plan.config.cog_dir
    store, target = str(predictions.path.absolute()), str(directory.absolute())
    tasks = ((f"cog-{number}", (store, target, some)) for number, some in enumerate(_shared_out(scenes)))
    with ProgressReport("writing GeoTIFFs", len(scenes)) as progress:

        def on_result(_: str, records: dict[str, Record]) -> None:
            for key, record in records.items():
                journal.append(key, record)
            progress.advance(len(records))

        run_tasks(client, write_some_cogs, tasks, on_result)


def report(plan: InferPlan, journal: Journal, failed: Mapping[str, SetAside]) -> None:
    """Print what there is now, and how to open it."""
    config = plan.config
    pixels = np.zeros(plan.sliding.classes, np.int64)
    for key, record in journal.records.items():
        kind, scene_id, *_ = key.split("/")
        if kind == "block" and scene_id not in failed:
            pixels += record.get("class_pixels", 0)
    shares = ", ".join(
        f"{name} {100 * share:.1f} %"
        for name, share in zip(plan.contract.class_names, pixels / max(pixels.sum(), 1), strict=True)
    )
    print(f"{shares} of {pixels.sum()} pixels with data")
    print(f"store: {config.prediction_store}")
    if config.infer.cog:
        print(f"GeoTIFFs: {config.cog_dir}/*.tif")
    some = next((scene.scene_id for scene in plan.scenes if scene.scene_id not in failed), plan.scenes[0].scene_id)
    print(
        f"open one with geochip.open_scene({str(config.prediction_store)!r}, {some!r}), all with xarray.open_datatree"
    )


if __name__ == "__main__":
    # Run under its real name, so that Dask workers find its functions by import.
    from geochip.infer import main as _main

    sys.exit(run_command(_main))
