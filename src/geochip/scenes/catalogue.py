"""The scene catalogue: which scenes there are, and what their headers say."""

import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import shapely
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError

from geochip.config import DataConfig
from geochip.errors import InputError, WorkError
from geochip.scenes.reader import Scene, gdal_reason, quiet_open

SUPPORTED_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

# Opening a file on a parallel file system is waiting, not computing: more threads than cores pay off.
_HEADER_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A scene that is left out, and why."""

    scene_id: str
    split: str
    path: str
    reason: str

    def __str__(self) -> str:
        return f"scene {self.scene_id}{f' ({self.split})' if self.split else ''}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The scenes that can be used, and those that cannot."""

    scenes: tuple[Scene, ...] = ()
    unlabelled: tuple[SetAside, ...] = ()
    """Scenes without a label file."""
    bad: tuple[SetAside, ...] = ()
    """Scenes whose header cannot be read or does not fit the configuration."""


def find_scenes(data: DataConfig, splits: Sequence[str] | None = None, *, need_labels: bool = True) -> Catalogue:
    """Find the scenes of some splits by the configured templates and read their headers.

    Args:
        data: where to look.
        splits: the splits to look for; all of `data.splits` when None.
        need_labels: leave scenes without a label file out (listed in `unlabelled`); False keeps them.

    Returns:
        Scenes ordered by split as configured, then by id, numbers in ids by value.

    Raises:
        InputError: when the root is no directory, when a template matches no file, when no scene has a label, or when
            no scene can be used at all.
    """
    if unknown := [split for split in splits or () if split not in data.splits]:
        raise InputError(f"split {unknown[0]!r} is not among data.splits: {', '.join(data.splits)}; name one of them")
    # Absolute: Dask workers need not have been started in this directory.
    root = Path(data.root).absolute()
    if not root.is_dir():
        raise InputError(f"data.root: {data.root!r} is no directory; set it to the one that holds the scenes")
    found = [(split, *hit) for split in splits or data.splits for hit in _match_template(data, split)]
    unlabelled: list[SetAside] = []
    to_describe: list[tuple[str, str, Path, str | None, tuple[int, ...] | None]] = []
    for split, scene_id, path in found:
        label = label_path(data, split, scene_id)
        if label.exists() or not need_labels:
            to_describe.append((scene_id, split, path, str(label) if label.exists() else None, data.bands))
        else:
            unlabelled.append(
                SetAside(scene_id=scene_id, split=split, path=str(path), reason=f"there is no label file {label}")
            )
    if not to_describe:
        raise InputError(
            f"data.label: none of the {len(found)} scenes has a label file; the first one looked for is "
            f"{label_path(data, *found[0][:2])}; correct data.label or data.root"
        )
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        described = list(pool.map(lambda arguments: _describe(*arguments), to_describe))
    return _catalogue(described, unlabelled)


def describe_files(paths: Sequence[str], data: DataConfig) -> Catalogue:
    """Read the headers of images that are named one by one.

    A file that fits the image template gets its id, its split and, where there is one, its label from there; any other
    file has its stem as its id and no label.

    Raises:
        InputError: when a file is not there, when two would have the same id, or when none can be used.
    """
    described: list[Scene | SetAside] = []
    for name in paths:
        path = Path(os.path.abspath(name))
        if not path.is_file():
            raise InputError(f"{name} is no file; name images that are there")
        scene_id, split, label = path.stem, "", None
        for candidate in data.splits:
            match = re.fullmatch(_template_regex(data, candidate), str(path))
            if match:
                scene_id, split = match["id"], candidate
                with_label = label_path(data, split, scene_id)
                label = str(with_label) if with_label.exists() else None
                break
        described.append(_describe(scene_id, split, path, label, data.bands))
    doubled = [scene_id for scene_id, n in Counter(item.scene_id for item in described).items() if n > 1]
    if doubled:
        raise InputError(f"scene id {doubled[0]!r} belongs to more than one of the named files; name each scene once")
    return _catalogue(described)


def set_aside(catalogue: Catalogue, faults: Iterable[tuple[Scene, str]]) -> Catalogue:
    """Move scenes that turned out unusable from `scenes` to `bad`, each with its reason.

    Raises:
        InputError: when no scene is left.
    """
    reasons = {(scene.split, scene.scene_id): reason for scene, reason in faults}
    kept = tuple(scene for scene in catalogue.scenes if (scene.split, scene.scene_id) not in reasons)
    gone = tuple(
        SetAside(scene_id=scene.scene_id, split=scene.split, path=scene.image, reason=reason)
        for scene in catalogue.scenes
        if (reason := reasons.get((scene.split, scene.scene_id)))
    )
    return _usable(replace(catalogue, scenes=kept, bad=(*catalogue.bad, *gone)))


def odd_ones(scenes: Sequence[Scene]) -> list[tuple[Scene, str]]:
    """Scenes that cannot share an array with the others: another dtype or other bands than most have."""
    (dtype, bands), _ = Counter((scene.dtype, scene.band_names) for scene in scenes).most_common(1)[0]
    return [
        (
            scene,
            f"{scene.image} has the bands {', '.join(scene.band_names)} of {scene.dtype} where most scenes have "
            f"{', '.join(bands)} of {dtype}; chips of one store share both: convert the file, or choose common bands "
            "with data.bands",
        )
        for scene in scenes
        if (scene.dtype, scene.band_names) != (dtype, bands)
    ]


def _catalogue(described: Sequence[Scene | SetAside], unlabelled: Sequence[SetAside] = ()) -> Catalogue:
    return _usable(
        Catalogue(
            scenes=tuple(item for item in described if isinstance(item, Scene)),
            unlabelled=tuple(unlabelled),
            bad=tuple(item for item in described if isinstance(item, SetAside)),
        )
    )


def _usable(catalogue: Catalogue) -> Catalogue:
    if not catalogue.scenes:
        shown = [str(item) for item in catalogue.bad[:5]]
        more = [f"... and {len(catalogue.bad) - 5} more"] if len(catalogue.bad) > 5 else []
        raise InputError("\n".join(["no scene can be used", *shown, *more]))
    return catalogue


def _template_path(data: DataConfig, split: str) -> str:
    return os.path.abspath(Path(data.root) / data.image.replace("{split}", split))


def label_path(data: DataConfig, split: str, scene_id: str) -> Path:
    """Where the label of a scene is, whether there is one or not; absolute."""
    return Path(data.root).absolute() / data.label.replace("{split}", split).replace("{id}", scene_id)


def _template_regex(data: DataConfig, split: str) -> str:
    first, *rest = (re.escape(part) for part in _template_path(data, split).split("{id}"))
    # A second {id} in a template must repeat the first.
    return first + "(?P<id>[^/]+?)" + "(?P=id)".join(rest)


def _match_template(data: DataConfig, split: str) -> list[tuple[str, Path]]:
    template = _template_path(data, split)
    pattern = "*".join(glob.escape(part) for part in template.split("{id}"))
    regex = re.compile(_template_regex(data, split))
    hits = [(match["id"], Path(name)) for name in glob.iglob(pattern) if (match := regex.fullmatch(name))]
    if not hits:
        raise InputError(
            f"data.image: no file matches {pattern} (split {split!r}); correct data.root, data.image or data.splits"
        )
    return sorted(hits, key=lambda hit: _natural(hit[0]))


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key under which img9 comes before img10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _describe(
    scene_id: str, split: str, path: Path, label: str | None, bands: tuple[int, ...] | None
) -> Scene | SetAside:
    def aside(reason: str) -> SetAside:
        return SetAside(scene_id=scene_id, split=split, path=str(path), reason=reason)

    if not path.is_file():
        return aside(f"{path} is no file")
    try:
        with quiet_open(str(path)) as dataset:
            alpha = {
                i for i, colour in zip(dataset.indexes, dataset.colorinterp, strict=True) if colour == ColorInterp.alpha
            }
            chosen = bands or tuple(index for index in dataset.indexes if index not in alpha)
            if missing := [index for index in chosen if index > dataset.count]:
                return aside(f"data.bands asks for band {missing[0]}, {path} has bands 1 to {dataset.count}")
            dtype = dataset.dtypes[chosen[0] - 1] if chosen else "none"
            if dtype not in SUPPORTED_DTYPES:
                return aside(f"{path} has pixels of type {dtype}; known are {', '.join(SUPPORTED_DTYPES)}")
            crs = dataset.crs.to_string() if dataset.crs else None
            return Scene(
                scene_id=scene_id,
                split=split,
                image=str(path),
                label=label,
                height=dataset.height,
                width=dataset.width,
                count=dataset.count,
                dtype=dtype,
                crs=crs,
                transform=dataset.transform,
                nodata=dataset.nodata,
                bands=chosen,
                band_names=tuple(dataset.descriptions[index - 1] or f"band_{index}" for index in chosen),
                pixel_size=_ground_pixel_size(crs, dataset.transform, dataset.height, dataset.width),
                image_bytes=path.stat().st_size,
                label_bytes=Path(label).stat().st_size if label else 0,
            )
    except (RasterioError, OSError) as error:
        return aside(f"{path} is no raster that GDAL can read, such as a GeoTIFF ({gdal_reason(error)})")


@lru_cache(maxsize=64)
def _to_lon_lat(crs: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


def _ground_pixel_size(crs: str | None, transform: Affine, height: int, width: int) -> float | None:
    """Geometric mean of a pixel's two sides on the WGS 84 ellipsoid, at the scene's centre, in metres."""
    if crs is None:
        return None
    col, row = width / 2, height / 2
    corners = [transform @ point for point in ((col, row), (col + 1, row), (col, row + 1))]
    try:
        lon, lat = _to_lon_lat(crs).transform([x for x, _ in corners], [y for _, y in corners], errcheck=True)
    except pyproj.exceptions.ProjError:
        return None
    geod = pyproj.Geod(ellps="WGS84")
    _, _, across = geod.inv(lon[0], lat[0], lon[1], lat[1])
    _, _, down = geod.inv(lon[0], lat[0], lon[2], lat[2])
    return float(np.sqrt(across * down))


def scene_digest(scene: Scene, *, with_label: bool) -> dict[str, str]:
    """What tells whether a scene is the one that it was, wherever its files are.

    Args:
        scene: the scene.
        with_label: whether its label counts.

    Returns:
        "header": a digest of what the image's header says; "content": of the image's size in bytes and, if it counts,
        of the label's bytes.
    """
    header = asdict(scene) | {"transform": tuple(scene.transform)[:6]}
    for name in ("image", "label", "image_bytes", "label_bytes"):
        del header[name]
    label = Path(scene.label).read_bytes() if with_label and scene.label else b""
    return {
        "header": hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16],
        "content": hashlib.sha256(f"{scene.image_bytes} ".encode() + label).hexdigest()[:16],
    }


def settle_bad_scenes(bad: Sequence[SetAside], *, scenes: int, allowed: int, what: str, rest: str) -> None:
    """End a command that had to leave scenes out: print them where they are allowed for.

    Args:
        bad: the scenes, with their reasons.
        scenes: how many there were in all.
        allowed: `data.max_bad_scenes`.
        what: what could not be done with them, as in "could not be ...".
        rest: what became of the others.

    Raises:
        WorkError: when more are bad than are allowed.
    """
    if not bad:
        return
    listed = "\n".join(str(item) for item in bad)
    if len(bad) > allowed:
        raise WorkError(
            f"{listed}\n{len(bad)} of {scenes} scenes could not be {what} (see above), data.max_bad_scenes allows "
            f"{allowed}; {rest}. Mend the files and run again, or allow it with --data.max_bad_scenes"
        )
    print(f"set aside, as data.max_bad_scenes allows:\n{listed}")


def catalogue_frame(catalogue: Catalogue) -> gpd.GeoDataFrame:
    """The catalogue as a table for GIS: one row a scene, its footprint in EPSG:4326 as the geometry.

    Columns: the fields of `Scene` as far as they are numbers or text, `status` ("ok", "unlabelled" or "bad") and
    `reason`. Scenes without a CRS, and those set aside, have no geometry.
    """
    rows: list[dict[str, Any]] = []
    for scene in catalogue.scenes:
        row = asdict(scene) | {"status": "ok", "reason": "", "geometry": _footprint(scene)}
        row |= {"bands": ",".join(map(str, scene.bands)), "band_names": ",".join(scene.band_names)}
        row["transform"] = ",".join(repr(value) for value in scene.transform[:6])
        rows.append(row)
    for status, items in (("unlabelled", catalogue.unlabelled), ("bad", catalogue.bad)):
        rows += [
            {
                "scene_id": item.scene_id,
                "split": item.split,
                "image": item.path,
                "status": status,
                "reason": item.reason,
                "geometry": None,
            }
            for item in items
        ]
    return gpd.GeoDataFrame(rows, geometry="geometry", crs="EPSG:4326")


def _footprint(scene: Scene) -> shapely.Polygon | None:
    if scene.crs is None:
        return None
    corners = [(0, 0), (scene.width, 0), (scene.width, scene.height), (0, scene.height)]
    points = [scene.transform @ corner for corner in corners]
    try:
        lon, lat = _to_lon_lat(scene.crs).transform([x for x, _ in points], [y for _, y in points], errcheck=True)
    except pyproj.exceptions.ProjError:
        return None  # a local grid, which nothing relates to the earth
    return shapely.Polygon(zip(lon, lat, strict=True))
