"""Predict whole scenes: a model and GeoTIFFs in, one prediction store and cloud-optimised GeoTIFFs out.

    python -m geochip.infer --config run.yaml                  # the scenes of infer.split
    python -m geochip.infer --config run.yaml scene.tif ...    # these images
    python -m geochip.infer --config run.yaml --dry_run        # say what would be done, and stop

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

import geochip
from geochip.cluster import dask_client, describe_jobs, require_cluster, run_tasks
from geochip.config import ClusterConfig, RunConfig, available_cpus
from geochip.errors import run_command
from geochip.gpus import usable
from geochip.infer_plan import InferPlan, plan_inference, predictions_depend_on
from geochip.infer_worker import Job, Piece, Record, changed_scenes, predict_pieces, write_some_cogs
from geochip.progress import ProgressReport, counted
from geochip.recheck import recheck
from geochip.run_file import parse_command
from geochip.scenes import RECORD, SetAside, settle_bad_scenes
from geochip.store import Journal, PredictedScene, PredictionStore, SceneGrid, make_header, sweep_locks
from geochip.store.cog import cog_path, sweep_cogs
from geochip.windows import blocks

# Small blocks share a task when there are more of them: every task costs the scheduler up to a millisecond.
_MOST_TASKS = 20_000
# One worker reads and writes while another one computes; more would only fill the GPU's memory with the same model.
_WORKERS_PER_GPU = 2


def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    called = parse_command(
        argv,
        command="infer",
        description="Predict whole scenes with a trained model.",
        files="images to predict; none: the scenes of infer.split",
        switches={"dry_run": "say what would be done, and stop"},
    )
    config = called.config
    check_device(config)
    plan = plan_inference(config, called.files or config.infer.files)
    for warning in plan.warnings:
        print(f"warning: {warning}")
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
    header = make_header(*predictions_depend_on(plan))
    if not store.exists():
        require_cluster(config.cluster, jobs="gpu", run_dir=config.run_dir)
    with Journal.of_store(store, header, option="infer.store") as journal:
        if not store.exists():
            create_store(store, plan, header["fingerprint"])
        sweep_locks(store)
        failed = work(plan, PredictionStore(store), journal)
        report(plan, journal, failed)
    settle_bad_scenes(
        [*plan.bad, *failed.values()],
        scenes=len(plan.scenes) + len(plan.bad),
        allowed=config.data.max_bad_scenes,
        what="read",
        rest="all others are predicted",
    )


def check_device(config: RunConfig) -> None:
    """Raise `InputError` when a GPU is asked for on a machine without one; elsewhere only workers can tell."""
    if config.cluster.kind == "local":
        usable(config.infer.device, "infer.device")


def create_store(store: Path, plan: InferPlan, fingerprint: str) -> None:
    """Create the store with a place for every scene and no predictions."""
    contract, sliding = plan.contract, plan.sliding
    model = ("architecture", "encoder", "band_names", "dtype", "chip_size", "pixel_size_range", "geochip_version")
    grids = [
        SceneGrid(
            scene_id=scene.scene_id, split=scene.split, height=scene.height, width=scene.width, crs=scene.crs or "",
            transform=tuple(map(float, tuple(scene.transform)[:6])),  # type: ignore[arg-type]
        )
        for scene in plan.scenes
    ]  # fmt: skip
    PredictionStore.create(
        store,
        grids,
        class_names=contract.class_names,
        block=plan.config.infer.block,
        probability=plan.config.infer.probability,
        attributes={
            "geochip_version": geochip.__version__,
            "fingerprint": fingerprint,
            "model_sha256": plan.model_sha256,
            "model": {name: getattr(contract, name) for name in model},
            "chip_store_fingerprint": contract.chip_store_fingerprint,
            "split_overlap": contract.split_overlap,
            "window": sliding.size,
            "stride": sliding.stride,
            "blend": sliding.blend,
            "batch_size": sliding.batch_size,
            **({} if plan.squares is None else {RECORD: plan.squares.to_json()}),
        },
    )


def work(plan: InferPlan, predictions: PredictionStore, journal: Journal) -> dict[str, SetAside]:
    """Do what is missing of the store and of the GeoTIFFs.

    Returns:
        The scenes that could not be read, by id.
    """
    started = time.perf_counter()
    failed: dict[str, SetAside] = {}
    missing = missing_pieces(plan, predictions, journal)
    doubtful = doubtful_pieces(plan, predictions, journal)
    with contextlib.ExitStack() as stack:
        # No cluster is started to find that there is nothing to do.
        client = None
        if missing or doubtful or missing_cogs(plan, predictions, journal, failed):
            cluster = cluster_for(plan.config)
            client = stack.enter_context(dask_client(cluster, jobs="gpu", run_dir=plan.config.run_dir))
        if client is not None and doubtful:
            tasks = comparisons(plan, predictions, doubtful)
            recheck(client, journal, tasks, changed_scenes, store=predictions.path, option="infer.store")
        else:
            # Nothing was made of doubtful scenes so far.
            journal.settle({}, store=predictions.path, option="infer.store")
        if client is not None and missing:
            failed = predict_pieces_on(client, plan, predictions, missing, journal)
            now = {piece.scene.scene_id for piece in missing} - set(failed)
            seconds = time.perf_counter() - started
            windows = sum(
                plan.sliding.count(scene.height, scene.width) for scene in plan.scenes if scene.scene_id in now
            )
            print(
                f"predicted {len(now)} scenes, {windows} windows, in {seconds:.1f} s: {len(now) / seconds:.3g} scenes/s"
            )
        predictions.finish(scene.scene_id for scene in plan.scenes if scene.scene_id not in failed)
        if client is not None and (cogs := missing_cogs(plan, predictions, journal, failed)):
            write_cogs_on(client, plan, predictions, cogs, journal)
    return failed


def pieces_of(plan: InferPlan, predictions: PredictionStore) -> list[Piece]:
    """All blocks of all scenes."""
    return [
        Piece(scene=scene, place=predictions.scenes[scene.scene_id], block=block)
        for scene in plan.scenes
        for block in blocks(scene.height, scene.width, predictions.block)
    ]


def doubtful_pieces(plan: InferPlan, predictions: PredictionStore, journal: Journal) -> list[tuple[Piece, int]]:
    """The finished blocks of scenes whose files were written or copied since, each with its checksum."""
    return [
        (piece, journal.records[piece.key]["pixels"])
        for piece in (pieces_of(plan, predictions) if journal.doubtful_keys else ())
        if piece.key in journal.doubtful_keys and "pixels" in journal.records[piece.key]
    ]


def comparisons(
    plan: InferPlan, predictions: PredictionStore, pieces: Sequence[tuple[Piece, int]]
) -> Iterator[tuple[str, tuple[Any, ...], Collection[str]]]:
    """What `recheck` takes: some blocks at a time, and whose they are."""
    job = job_of(plan, predictions)
    for number, some in enumerate(_shared_out(pieces)):
        yield f"compare-{number}", (job, some), {piece.scene.scene_id for piece, _ in some}


def job_of(plan: InferPlan, predictions: PredictionStore) -> Job:
    """What all tasks of a run need to know."""
    config = plan.config
    return Job(
        bundle=str(config.bundle_dir.absolute()), model_sha256=plan.model_sha256, device=config.infer.device,
        store=str(predictions.path.absolute()), sliding=plan.sliding, nodata=plan.contract.nodata,
        probability=predictions.probability,
    )  # fmt: skip


def missing_pieces(plan: InferPlan, predictions: PredictionStore, journal: Journal) -> list[Piece]:
    """The blocks that no run has finished. One of a scene that could not be read is among them: it may read now."""
    pieces = pieces_of(plan, predictions)
    missing = [
        piece for piece in pieces if piece.key in journal.dropped or "pixels" not in journal.records.get(piece.key, {})
    ]
    if not missing:
        print("all of them are predicted already")
    elif len(missing) < len(pieces):
        print(f"{len(pieces) - len(missing)} of {len(pieces)} blocks are there already")
    return missing


def predict_pieces_on(
    client: Any, plan: InferPlan, predictions: PredictionStore, pieces: Sequence[Piece], journal: Journal
) -> dict[str, SetAside]:
    """Predict blocks on the cluster; returns the scenes that could not be read, by id."""
    job = job_of(plan, predictions)
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


def _shared_out(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    each = math.ceil(len(items) / _MOST_TASKS)
    for start in range(0, len(items), each):
        yield items[start : start + each]


def missing_cogs(
    plan: InferPlan, predictions: PredictionStore, journal: Journal, failed: Mapping[str, SetAside]
) -> list[PredictedScene]:
    """The scenes that have no GeoTIFF and shall have one."""
    if not plan.config.infer.cog:
        return []
    return [
        predictions.scenes[scene.scene_id]
        for scene in plan.scenes
        if scene.scene_id not in failed
        and not (f"cog/{scene.scene_id}" in journal.records and cog_path(plan.config.cog_dir, scene.scene_id).exists())
    ]


def write_cogs_on(
    client: Any, plan: InferPlan, predictions: PredictionStore, scenes: Sequence[PredictedScene], journal: Journal
) -> None:
    """Write GeoTIFFs on the cluster."""
    directory = plan.config.cog_dir
    sweep_cogs(directory)
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
