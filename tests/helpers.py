"""Small real data sets whose pixels say where they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

ROOT = Path(__file__).parents[1]

IMAGE = "{split}/scene_{id}.tif"
LABEL = "{split}/label_{id}.geojson"

# Half-metre pixels in UTM zone 11 North, around Las Vegas.
UTM = Affine(0.5, 0, 664_000, 0, -0.5, 4_004_000)


def position_coded(height, width, bands=3):
    """uint32 (bands, height, width): the value is band * 2**28 + row * 2**14 + column."""
    rows, cols = np.indices((height, width), dtype=np.uint32)
    return np.stack([(np.uint32(band) << 28) + (rows << 14) + cols for band in range(bands)])


def write_image(path, image, *, crs="EPSG:32611", transform=UTM, **profile):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=image.shape[0], height=image.shape[1], width=image.shape[2],
        dtype=image.dtype, crs=crs, transform=transform, **profile,
    ) as dataset:  # fmt: skip
        dataset.write(image)
    return path


def box(transform, row, col, height, width):
    """A GeoJSON polygon that covers just these pixels of a grid."""
    corners = [(col, row), (col + width, row), (col + width, row + height), (col, row + height), (col, row)]
    return {"type": "Polygon", "coordinates": [[list(transform @ corner) for corner in corners]]}


def write_label(path, geometries, *, crs="EPSG:32611", properties=None):
    """A FeatureCollection; crs "missing" writes no crs member, None writes null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    properties = properties or [{}] * len(geometries)
    document = {"type": "FeatureCollection"}
    if crs != "missing":
        document["crs"] = crs and {"type": "name", "properties": {"name": crs}}
    document["features"] = [
        {"type": "Feature", "properties": p, "geometry": g} for p, g in zip(properties, geometries, strict=True)
    ]
    path.write_text(json.dumps(document))
    return path


def write_scene(root, split, scene_id, image=None, *, geometries=None, crs="EPSG:32611", transform=None, **profile):
    """A scene with its label in the layout of `IMAGE` and `LABEL`; each id lies at a place of its own."""
    image = position_coded(60, 70) if image is None else image
    if transform is None:
        number = sum(ord(letter) * 31**k for k, letter in enumerate(f"{split}{scene_id}")) % 5000
        transform = UTM @ Affine.translation(2000 * (number % 70), 2000 * (number // 70))
    write_image(Path(root) / IMAGE.format(split=split, id=scene_id), image, crs=crs, transform=transform, **profile)
    if geometries is None:
        geometries = [box(transform, 10, 20, 8, 12), box(transform, 30, 5, 20, 9)]
    write_label(Path(root) / LABEL.format(split=split, id=scene_id), geometries, crs=crs)
    return transform


def data_flags(root, *splits):
    return [
        f"--data.root={root}",
        f"--data.image={IMAGE}",
        f"--data.label={LABEL}",
        f"--data.splits=[{','.join(splits)}]",
    ]


def run(*arguments, **environment):
    """A command as a person runs it; returns the finished process with its text."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, timeout=280,
        env={**os.environ, **environment}, check=False,
    )  # fmt: skip


def tree_hash(path):
    """Digest of every file below a directory, names included."""
    import hashlib

    digest = hashlib.sha256()
    for file in sorted(Path(path).rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def open_label(
    path, *, height, width, transform=UTM, crs="EPSG:32611", classes=("0", "1"), aoi=None, near=None, **rules
):
    """A `SceneLabel` of a grid; `rules` are keys of the section labels."""
    from geochip.config import LabelsConfig
    from geochip.labels import Grid, LabelRules, SceneLabel

    grid = Grid(height=height, width=width, transform=transform, crs=crs)
    return SceneLabel(
        str(path), grid, LabelRules(classes=tuple(classes), labels=LabelsConfig(**rules)), aoi=aoi, near=near
    )


def read_label(path, *, height, width, **how):
    """A whole scene's label; the arguments are those of `open_label`."""
    from geochip.windows import Window

    with open_label(path, height=height, width=width, **how) as label:
        return label.read(Window(row_off=0, col_off=0, height=height, width=width))


# A layout without splits: something else says which scene belongs to which.
FLAT_IMAGE = "images/scene_{id}.tif"
FLAT_LABEL = "labels/{id}.geojson"


def write_flat(root, scene_id, x=0.0, crs="EPSG:32611"):
    """A scene of 4 x 5 pixels with an empty label in the layout of `FLAT_IMAGE`, `x` metres east of `UTM`."""
    transform = UTM @ Affine.translation(2 * x, 0)
    write_image(Path(root) / FLAT_IMAGE.format(id=scene_id), position_coded(4, 5), transform=transform, crs=crs)
    return write_label(Path(root) / FLAT_LABEL.format(id=scene_id), [], crs=crs)


def ids_by_split(catalogue):
    """The ids of a catalogue's scenes by split, in its order."""
    found = {"train": [], "val": [], "test": []}
    for scene in catalogue.scenes:
        found[scene.split].append(scene.scene_id)
    return found
