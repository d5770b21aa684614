"""A small finished run with everything that a command may read: made once, copied and broken for each case."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
from affine import Affine

from helpers import IMAGE, LABEL, UTM, box, write_image, write_scene

SCENES = (("train", "a"), ("train", "b"), ("val", "c"))

RUN_FILE = """\
run_dir: run
data:
  root: data
  image: "{split}/scene_{id}.tif"
  label: "{split}/label_{id}.geojson"
  splits: [train, val]
  bands: [1, 2]
  classes: [background, building]
  max_bad_scenes: 1
labels:
  class_property: kind
  class_map: {house: building, "2": building}
  ignore: [tree]
  priority: [building]
  buffer: {building: 1}
  all_touched: false
split:
  by: directories
  column: split
  block: 1000
  seed: 3
chips:
  size: 32
  method: random
  per_scene: 4
  aoi: aoi.geojson
  aoi_within: false
  min_valid: 0.1
  target_classes: [building]
  negative_rate: 0.5
  seed: 5
model:
  architecture: linear
  encoder: resnet18
  encoder_weights: null
train:
  split: train
  val_split: val
  epochs: 2
  batch_size: 2
  lr: 0.01
  augment: true
  seed: 7
  device: cpu
  save_minutes: 10
infer:
  split: val
  window: 32
  stride: 16
  blend: hann
  batch_size: 4
  block: 32
  probability: true
  cog: true
  device: cpu
"""


def make(directory: Path, address: str) -> Path:
    """Make the run below `directory`: data, tables, a run file, and all that the commands write.

    Args:
        directory: becomes the working directory of the cases' copies; must not exist.
        address: of a running Dask scheduler.
    """
    from geochip import chipping, evaluate, infer, train_ddp

    data = directory / "data"
    rng = np.random.default_rng(0)
    boxes = []
    for number, (split, scene_id) in enumerate(SCENES):
        image = rng.integers(1, 100, (2, 64, 64)).astype(np.uint16)
        transform = UTM @ Affine.translation(200 * number, 0)
        geometries = [box(transform, 10, 20, 15, 20), box(transform, 40, 0, 5, 64)]
        write_scene(data, split, scene_id, image, geometries=geometries, transform=transform, nodata=0)
        _give_properties(data / LABEL.format(split=split, id=scene_id))
        mask = np.zeros((1, 64, 64), np.uint8)
        mask[:, 10:25, 20:40] = 1
        write_image(data / split / f"mask_{scene_id}.tif", mask, transform=transform)
        boxes.append(box(transform, 0, 0, 64, 60))
    _write_tables(data, boxes)
    (directory / "run.yaml").write_text(RUN_FILE)
    (directory / "outside").mkdir()
    (directory / "outside" / "precious.txt").write_text("not geochip's")
    with contextlib.chdir(directory), contextlib.redirect_stdout(io.StringIO()):
        for command in (chipping, train_ddp, infer, evaluate):
            command.main(["--config=run.yaml", *cluster_flags(address)])
    return directory


def cluster_flags(address: str) -> list[str]:
    return ["--cluster.kind=address", f"--cluster.address={address}"]


def _give_properties(path: Path) -> None:
    document = json.loads(path.read_text())
    for feature, kind in zip(document["features"], ("house", "tree"), strict=True):
        feature["properties"] = {"kind": kind}
    path.write_text(json.dumps(document))


def _write_tables(data: Path, boxes: list[dict]) -> None:
    rows = [
        f"{scene_id},{split},{IMAGE.format(split=split, id=scene_id)},{LABEL.format(split=split, id=scene_id)}"
        for split, scene_id in SCENES
    ]
    (data / "manifest.csv").write_text("\n".join(["scene_id,split,image,label", *rows, ""]))
    collection = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "EPSG:32611"}},
        "features": [{"type": "Feature", "properties": {}, "geometry": one} for one in boxes],
    }
    (data / "aoi.geojson").write_text(json.dumps(collection))
