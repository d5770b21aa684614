"""Images that squares of ground divide, and the brute force that says which pixel is whose."""

import numpy as np
import pyproj
import shapely
from affine import Affine

from geochip.config import ChipsConfig, DataConfig, RunConfig, SplitConfig
from helpers import UTM, write_image, write_label

SPLITS = ("train", "val", "test")
HALF = {"train": 0.5, "val": 0.25, "test": 0.25}
# 200 x 150 m in four grids; the borders of the squares fall between the pixels' edges.
ROWS, COLS = 300, 400
_LON, _LAT = pyproj.Transformer.from_crs("EPSG:32611", "EPSG:4326", always_xy=True).transform(664_013.3, 4_003_988.8)
GRIDS = {
    "north up": ("EPSG:32611", UTM @ Affine.translation(26.6, 22.4)),
    "rotated": ("EPSG:32611", UTM @ Affine.translation(26.6, 22.4) @ Affine.rotation(30)),
    "degrees": ("EPSG:4326", Affine(5.5e-6, 0, _LON, 0, -4.5e-6, _LAT)),
    "south up": ("EPSG:32611", Affine(0.5, 0, 664_013.3, 0, 0.5, 4_003_838.8)),
}


def config_of(root, *, chips=None, splits=SPLITS, **split):
    data = DataConfig(root=str(root), image="{id}.tif", label="{id}.geojson", splits=splits)
    split = SplitConfig(**{"by": "blocks", "block": 40.0, "fractions": HALF if splits == SPLITS else None, **split})
    return RunConfig(
        run_dir=str(root / "run"), data=data, split=split, chips=chips or ChipsConfig(size=16, per_scene=40)
    )


def write_ortho(root, name="ortho", grid="north up", *, image=None, geometries=(), shift=(0, 0)):
    """An image with its label in the layout of `config_of`, moved by columns and rows."""
    crs, transform = GRIDS[grid]
    transform = transform @ Affine.translation(*shift)
    image = np.zeros((1, ROWS, COLS), np.uint16) if image is None else image
    write_image(root / f"{name}.tif", image, crs=crs, transform=transform)
    write_label(root / f"{name}.geojson", list(geometries), crs=crs)
    return transform


def on_ground(scene, squares, cols_rows):
    """Pixel coordinates (n, 2) as x, y of the squares' CRS."""
    x, y = scene.transform @ np.asarray(cols_rows, float).T
    return np.column_stack(pyproj.Transformer.from_crs(scene.crs, squares.crs, always_xy=True).transform(x, y))


def owners_of_pixels(scene, squares):
    """(row, col) name of the split of the square that a pixel's centre lies in."""
    rows, cols = np.indices((scene.height, scene.width))
    numbers = np.floor(on_ground(scene, squares, np.stack((cols + 0.5, rows + 0.5), -1).reshape(-1, 2)) / squares.side)
    owner = {square: split for split, owned in squares.owners.items() for square in owned}
    names = [owner.get((int(east), int(north)), squares.home) for east, north in numbers]
    return np.array(names).reshape(scene.height, scene.width)


def outline(scene, squares, window):
    """A window as a polygon of the squares' CRS."""
    box = shapely.box(window.col_off, window.row_off, window.col_stop, window.row_stop)
    return shapely.Polygon(on_ground(scene, squares, shapely.get_coordinates(box)))
