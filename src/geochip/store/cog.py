"""Cloud-optimised GeoTIFFs of predicted scenes, made from the finished prediction store."""

import contextlib
import glob
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import rasterio.windows
from affine import Affine

from geochip.config import IGNORE
from geochip.gdal import GDAL_ERRORS, bound_cache
from geochip.names import TEMPORARY_PREFIX
from geochip.store.predictions import PredictedScene, PredictionStore
from geochip.windows import blocks

bound_cache()

_TILE = 512
# What a directory of a writer may hold: the file, and what GDAL writes beside it.
_WRITTEN = ("plain.tif", "cog.tif")

# Okabe & Ito's colours, which people with any colour vision can tell apart; grey for the first class, the background.
_COLOURS = (
    (64, 64, 64), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip


def cog_path(directory: Path, scene_id: str) -> Path:
    """Where a scene's GeoTIFF is."""
    return directory / f"{scene_id}.tif"


def write_cog(store: PredictionStore, scene: PredictedScene, directory: Path) -> int:
    """Write one scene's classes as a cloud-optimised GeoTIFF: tiles, overviews, colours, class names.

    Memory stays at a block or so, whatever the scene's size. The file appears whole, under its name, or not at all.

    Args:
        store: the prediction store.
        scene: one of its scenes, complete.
        directory: where to put `{scene_id}.tif`; made when missing.

    Returns:
        Bytes of the file.
    """
    target = cog_path(directory, scene.scene_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_prefix(store), dir=target.parent) as temporary:
        plain, finished = Path(temporary) / "plain.tif", Path(temporary) / "cog.tif"
        _write_plain(store, scene, plain)
        rasterio.shutil.copy(
            plain, finished, driver="COG", compress="DEFLATE", blocksize=_TILE, bigtiff="IF_SAFER", num_threads=1,
            # The commonest class of the pixels that an overview's pixel stands for: classes have no mean.
            overview_resampling="MODE",
        )  # fmt: skip
        with finished.open("rb") as file:
            os.fsync(file.fileno())
        size = finished.stat().st_size
        finished.replace(target)
    return size


def _write_plain(store: PredictionStore, scene: PredictedScene, path: Path) -> None:
    """Copy the scene block by block into a tiled GeoTIFF, which GDAL's COG driver needs as its source."""
    georeference: dict[str, Any] = {"transform": Affine(*scene.transform)}
    if scene.crs:
        georeference["crs"] = scene.crs
    with (
        _quiet(),
        rasterio.open(
            path, "w", driver="GTiff", height=scene.height, width=scene.width, count=1, dtype="uint8", nodata=IGNORE,
            tiled=True, blockxsize=_TILE, blockysize=_TILE, compress="LZW", bigtiff="IF_SAFER", **georeference,
        ) as dataset,
    ):  # fmt: skip
        dataset.write_colormap(1, _colour_table(len(store.class_names)))
        dataset.set_band_description(1, "class")
        dataset.update_tags(
            CLASS_NAMES=",".join(store.class_names),
            SCENE_ID=scene.scene_id,
            MODEL_SHA256=store.attrs["model_sha256"],
            GEOCHIP_VERSION=store.attrs["geochip_version"],
        )
        dataset.update_tags(1, **{f"CLASS_{number}": name for number, name in enumerate(store.class_names)})
        for block in blocks(scene.height, scene.width, store.block):
            place = rasterio.windows.Window(block.col_off, block.row_off, block.width, block.height)
            dataset.write(store.read(scene, block), 1, window=place)


def fault_of_cog(store: PredictionStore, scene: PredictedScene, path: Path) -> str | None:
    """What is wrong with a scene's GeoTIFF, in words that follow its name; None when it holds what the store does.

    Raises:
        DamagedError: when a block of the store is lost or damaged.
    """
    try:
        with _quiet(), rasterio.open(path) as dataset:
            if (dataset.height, dataset.width) != (scene.height, scene.width):
                return f"has {dataset.height} x {dataset.width} pixels, the scene {scene.height} x {scene.width}"
            for block in blocks(scene.height, scene.width, store.block):
                place = rasterio.windows.Window(block.col_off, block.row_off, block.width, block.height)
                if not np.array_equal(dataset.read(1, window=place), store.read(scene, block)):
                    return f"holds other classes than {store.path}, at {block}"
    except GDAL_ERRORS as error:
        return f"cannot be read ({' '.join(str(error.__cause__ or error).split())})"
    return None


def _colour_table(classes: int) -> dict[int, tuple[int, int, int, int]]:
    colours = {number: (*_COLOURS[number % len(_COLOURS)], 255) for number in range(classes)}
    return {**colours, IGNORE: (0, 0, 0, 0)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # A scene without a georeference was predicted as it is; its GeoTIFF has none either.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


def _prefix(store: PredictionStore) -> str:
    """How the temporary directories of a store's writers are called: others' are left alone."""
    return f"{TEMPORARY_PREFIX}{str(store.attrs.get('fingerprint', ''))[:12]}-"


def sweep_cogs(directory: Path, store: PredictionStore) -> None:
    """Remove what killed writers of this store's GeoTIFFs left; call it only when nobody writes.

    Only their own directories, and in them only what they write: no symbolic link is followed, and nothing else goes.

    Args:
        directory: of the GeoTIFFs; there may be none.
        store: whose they are.
    """
    for left in directory.glob(f"{glob.escape(_prefix(store))}*"):
        if left.is_symlink() or not left.is_dir():
            continue
        for file in left.iterdir():
            if file.name.startswith(_WRITTEN) and not file.is_dir():
                file.unlink()
        with contextlib.suppress(OSError):
            # Something of another one's is in it.
            left.rmdir()
