"""Draw docs/demo.png from a finished `make demo`: a test scene, its label, the predicted probability, what is right.

.venv/bin/python docs/demo_picture.py demo docs/demo.png
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image

import geochip
from geochip.config import DataConfig, RunConfig
from geochip.labels import Grid, LabelRules, SceneLabel
from geochip.scenes import Scene, find_scenes
from geochip.windows import Window

GAP = 8


def main(demo: Path, target: Path) -> None:
    config = RunConfig(data=DataConfig(root=str(demo / "data")))
    scenes = find_scenes(config, ("test",)).scenes
    labels = [label_of(scene, config) for scene in scenes]
    best = int(np.argmax([label.sum() for label in labels]))
    scene, label = scenes[best], labels[best]
    with rasterio.open(scene.image) as dataset:
        image = dataset.read().astype(np.float32)
    low, high = (np.percentile(image, percent, axis=(1, 2))[:, None, None] for percent in (1, 99))
    photo = (np.clip((image - low) / (high - low), 0, 1) * 255).transpose(1, 2, 0).astype(np.uint8)
    predicted = geochip.open_scene(demo / "run" / "predictions.zarr", scene.scene_id)
    probability = (predicted.probability.sel(class_name="building").values * 255).astype(np.uint8)
    found = predicted["class"].values == 1
    verdict = photo // 3
    for where, colour in (
        ((label == 1) & found, (86, 180, 233)),  # found
        ((label == 1) & ~found, (230, 159, 0)),  # missed
        ((label == 0) & found, (213, 94, 0)),  # imagined
    ):
        verdict[where] = verdict[where] // 2 + np.array(colour, np.uint8) // 2
    panels: list[npt.NDArray[np.uint8]] = [photo, grey(label * 255), grey(probability), verdict]
    gap = np.full((scene.height, GAP, 3), 255, np.uint8)
    picture = np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)
    Image.fromarray(picture).save(target, optimize=True)


def label_of(scene: Scene, config: RunConfig) -> npt.NDArray[np.uint8]:
    grid = Grid(height=scene.height, width=scene.width, transform=scene.transform, crs=scene.crs)
    with SceneLabel(str(scene.label), grid, LabelRules(classes=config.data.classes, labels=config.labels)) as label:
        return label.read(Window(row_off=0, col_off=0, height=scene.height, width=scene.width))


def grey(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.repeat(values[..., None], 3, axis=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
