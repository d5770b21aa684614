"""What inference does on a Dask worker: predict blocks, write GeoTIFFs.

The model is loaded once in each worker process and stays for the blocks that follow.
"""

import platform
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from geochip.blending import Sliding, pack, predict_block, read_block
from geochip.config import Device
from geochip.errors import DamagedError, InputError, WorkError
from geochip.gpus import usable
from geochip.model import SegmentationModel, bundle_sha256, load_bundle
from geochip.scenes import Scene, SceneError, SceneReader
from geochip.store import PredictedScene, PredictionStore, block_key, stamps_of_block, write_block
from geochip.store.cog import write_cog
from geochip.windows import Window

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every task needs to know."""

    bundle: str
    model_sha256: str
    device: Device
    store: str
    sliding: Sliding
    nodata: float | None
    """What the model takes for nodata."""
    probability: bool
    block: int
    """Rows and columns of a block."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One block of one scene."""

    scene: Scene
    place: PredictedScene
    block: Window

    @property
    def key(self) -> str:
        """Name of the block in the journal."""
        return block_key(self.scene.scene_id, self.block)


def predict_pieces(job: Job, number: int, pieces: Sequence[Piece]) -> dict[str, Record]:
    """Predict and write blocks; runs on a Dask worker.

    Args:
        job: what all tasks share.
        number: of this task; spreads tasks over the GPUs of a machine with several.
        pieces: the blocks.

    Returns:
        By the blocks' keys: {"class_pixels": [...], "pixels": a checksum of what was read, "files": of what was
        written, by the array: bytes, checksum and time}, or {"error": why} for a scene that could not be read.
    """
    model = _model(job, number)
    records: dict[str, Record] = {}
    for piece in pieces:
        try:
            class_pixels, pixels = predict_piece(job, model, piece)
            written = stamps_of_block(Path(job.store), piece.place, piece.block, job.block, probability=job.probability)
            records[piece.key] = {"class_pixels": class_pixels, "pixels": pixels, "files": written}
        except SceneError as error:
            records[piece.key] = {"error": _reason(error, piece.scene)}
        except torch.OutOfMemoryError:
            raise WorkError(
                f"scene {piece.scene.scene_id}, {piece.block}: {job.sliding.batch_size} windows of {job.sliding.size} "
                f"x {job.sliding.size} pixels do not fit into the GPU's memory; lower --infer.batch_size or "
                "--cluster.workers"
            ) from None
        except WorkError as error:
            raise WorkError(f"scene {piece.scene.scene_id}, {piece.block}: {error}") from None
        except Exception as error:
            error.add_note(f"while predicting scene {piece.scene.scene_id}, {piece.block}")
            raise
    return records


def changed_scenes(job: Job, pieces: Sequence[tuple[Piece, int]]) -> list[tuple[str, str | None]]:
    """Read again what blocks were predicted from; runs on a Dask worker.

    Args:
        job: as when they were predicted.
        pieces: blocks, each with the "pixels" of its record.

    Returns:
        The ids of scenes that would be predicted from something else now, each with None, and of those that cannot be
        read, with the reason.
    """
    different: list[tuple[str, str | None]] = []
    for piece, pixels in pieces:
        scene = piece.scene
        try:
            with _Reading(job, scene) as reading:
                read_block(piece.block, scene.height, scene.width, job.sliding, reading.read)
        except SceneError as error:
            different.append((scene.scene_id, _reason(error, scene)))
        else:
            if reading.crc != pixels:
                different.append((scene.scene_id, None))
    return different


def _reason(error: SceneError, scene: Scene) -> str:
    """What an error says, without the scene's id, which stands before it anyway."""
    return str(error).removeprefix(f"scene {scene.scene_id}: ")


class _Reading:
    """Reads a scene as the model takes it, and sums up what it has read."""

    def __init__(self, job: Job, scene: Scene) -> None:
        self._reader, self._nodata = SceneReader(scene), job.nodata
        self.crc = 0

    def __enter__(self) -> Self:
        self._reader.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._reader.__exit__(*error)

    def read(self, window: Window) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        image_bhw, valid_hw = self._reader.read(window)
        image_bhw = with_nodata(image_bhw, valid_hw, self._reader.scene.nodata, self._nodata)
        for array in (image_bhw, valid_hw):
            self.crc = zlib.crc32(np.ascontiguousarray(array).data, self.crc)
        return image_bhw, valid_hw


def predict_piece(job: Job, model: SegmentationModel, piece: Piece) -> tuple[list[int], int]:
    """Predict and write one block; returns the number of its pixels of each class, and a checksum of what was read."""
    scene, block, sliding = piece.scene, piece.block, job.sliding

    def network(image_nbhw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            logits_nkhw = model(torch.from_numpy(image_nbhw).to(model.mean.device))
            probability_nkhw: npt.NDArray[np.float32] = torch.softmax(logits_nkhw, dim=1).cpu().numpy()
        return probability_nkhw

    with _Reading(job, scene) as reading:
        probability_khw, valid_hw = predict_block(block, scene.height, scene.width, sliding, reading.read, network)
    class_hw, packed_khw = pack(probability_khw, valid_hw)
    write_block(Path(job.store), piece.place, block, class_hw, packed_khw if job.probability else None)
    pixels: list[int] = np.bincount(class_hw[valid_hw], minlength=sliding.classes).tolist()
    return pixels, reading.crc


def with_nodata(
    image_bhw: npt.NDArray[Any], valid_hw: npt.NDArray[np.bool_], scenes: float | None, models: float | None
) -> npt.NDArray[Any]:
    """Pixels that are not valid hold what they hold in the chips that the model was trained on: its nodata value.

    A model of scenes without such a value has seen them as they are, under a mask for example; only where the scene has
    one, which the model never saw, they become 0.
    """
    if valid_hw.all() or (scenes is None and models is None):
        return image_bhw
    return np.where(valid_hw, image_bhw, np.asarray(models or 0, image_bhw.dtype))


# Of this process, by sha256 and device: loading one takes longer than predicting many a block.
_models: dict[tuple[str, str], SegmentationModel] = {}


def _model(job: Job, number: int) -> SegmentationModel:
    """The job's model, on the device that a task shall use.

    Raises:
        WorkError: when the model is not the one that the driver saw, or this machine lacks the GPU that is asked for.
    """
    try:
        gpus = usable(job.device, "infer.device")
    except InputError as error:
        raise WorkError(f"a worker on {platform.node()}: {error}") from None
    key = (job.model_sha256, f"cuda:{number % gpus}" if gpus else "cpu")
    if key not in _models:
        # The same on every machine: sums that are split over another number of threads round differently.
        torch.set_num_threads(1)
        if (found := bundle_sha256(Path(job.bundle))) != job.model_sha256:
            raise WorkError(
                f"model {job.bundle} was replaced during the run: its sha256 was {job.model_sha256[:12]}..., is "
                f"{found[:12]}...; put the first one back and run geochip.infer again, or predict anew with this one"
            )
        for other in [known for known in _models if known[0] != job.model_sha256]:
            del _models[other]
        _models[key], _ = load_bundle(Path(job.bundle), key[1])
    return _models[key]


def write_some_cogs(store: str, directory: str, scenes: Sequence[PredictedScene]) -> dict[str, Record]:
    """Write the GeoTIFFs of some scenes; runs on a Dask worker.

    Raises:
        WorkError: when a block of the store is damaged.
    """
    predictions = PredictionStore(store)
    try:
        return {f"cog/{scene.scene_id}": {"bytes": write_cog(predictions, scene, Path(directory))} for scene in scenes}
    except DamagedError as error:
        raise WorkError(str(error)) from None
