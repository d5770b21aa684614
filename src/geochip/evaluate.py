"""How good the predictions are: the prediction store against the labels, over all scenes and for each.

    python -m geochip.evaluate --config run.yaml

Every scene's label is drawn on the scene's own pixels and counted against its predicted classes, block by block.
eval.json has what Raster Vision's has, in the same places, and more.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import geochip
from geochip.config import DataConfig, RunConfig
from geochip.errors import InputError, WorkError, run_command
from geochip.files import make_directory, write_durably
from geochip.labels import Grid, LabelError, LabelRules, SceneLabel, indexed_labels, read_aoi
from geochip.metrics import Confusion, confusion_matrix, evaluation_items, scores
from geochip.progress import ProgressReport
from geochip.run_file import parse_run_config
from geochip.scenes import SetAside, aoi_path, label_path, require_shared_label, settle_bad_scenes
from geochip.store import PredictedScene, PredictionStore, journal_path, read_journal
from geochip.windows import blocks

_SCENES_SHOWN = 10
_CLASSES_SHOWN = 8


def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    config, _ = parse_run_config(argv, command="evaluate", description="Compare predictions with labels.")
    store = open_finished(config.prediction_store)
    make_directory(config.eval_path.parent, "run_dir")
    check_classes(store, config.data)
    labels, unlabelled = find_labels(store, config)
    confusions, bad = count(store, labels, config)
    for item in unlabelled:
        print(f"left out: {item}")
    if confusions:
        document = evaluation(store, confusions, [*unlabelled, *bad])
        write_durably(config.eval_path, json.dumps(document, indent=2, allow_nan=False).encode())
        show(store.class_names, confusions)
        print(f"scores: {config.eval_path}")
    elif bad:
        listed = "\n".join(str(item) for item in bad)
        raise WorkError(f"{listed}\nnone of the labelled scenes could be evaluated (see above); nothing was written")
    settle_bad_scenes(
        bad,
        scenes=len(labels) + len(unlabelled),
        allowed=config.data.max_bad_scenes,
        what="evaluated",
        rest="the scores are those of all others",
    )


def open_finished(path: Path) -> PredictionStore:
    """Open a prediction store whose inference came to its end.

    Raises:
        InputError: when there is none, or when blocks are missing.
    """
    store = PredictionStore(path)
    if not store.complete:
        total = sum(1 for scene in store.scenes.values() for _ in blocks(scene.height, scene.width, store.block))
        _, records, _ = read_journal(journal_path(path))
        done = sum(key.startswith("block/") for key in records)
        raise InputError(
            f"{path} is not complete: {done} of its {total} blocks are predicted, and missing ones would count as "
            "nodata; run python -m geochip.infer again, which goes on where it stopped"
        )
    return store


def check_classes(store: PredictionStore, data: DataConfig) -> None:
    """Raise `InputError` when labels and predictions do not mean the same by a class id."""
    if store.class_names != data.classes:
        raise InputError(
            f"data.classes: {', '.join(data.classes)} is not what {store.path} was predicted with, which is "
            f"{', '.join(store.class_names)}; set data.classes to that, or predict with a model of these classes"
        )


def find_labels(store: PredictionStore, config: RunConfig) -> tuple[dict[str, Path], list[SetAside]]:
    """The label of each predicted scene, by the scene's id, and the scenes that have none.

    Raises:
        InputError: when no scene has a label.
    """
    labels: dict[str, Path] = {}
    unlabelled: list[SetAside] = []
    for scene in store.scenes.values():
        path = label_path(config, scene.split, scene.scene_id)
        if scene.split:
            require_shared_label(config, scene.split, path)
        if scene.split and path.exists():
            labels[scene.scene_id] = path
        else:
            reason = f"there is no label file {path}" if scene.split else "it belongs to no split, and so has no label"
            unlabelled.append(_aside(scene, path, reason))
    if not labels:
        raise InputError(
            f"data.label: none of the {len(unlabelled)} scenes of {store.path} has a label file; the first: "
            f"{unlabelled[0]}; correct data.label or data.root, or predict scenes of a labelled split"
        )
    return labels, unlabelled


def _aside(scene: PredictedScene, path: Path, reason: str) -> SetAside:
    return SetAside(scene_id=scene.scene_id, split=scene.split, path=str(path), reason=reason)


def count(
    store: PredictionStore, labels: Mapping[str, Path], config: RunConfig
) -> tuple[dict[str, Confusion], list[SetAside]]:
    """Count each labelled scene's pixels.

    Returns:
        Confusion matrices by scene id; and the scenes that could not be predicted, or whose label cannot be used.
    """
    confusions: dict[str, Confusion] = {}
    bad: list[SetAside] = []
    directory = config.eval_path.with_name(f"{config.eval_path.name}.labels")
    with (
        indexed_labels(map(str, labels.values()), directory, config.labels.layer) as copies,
        ProgressReport("evaluating", len(labels)) as progress,
    ):
        instead = dict(copies)
        for scene_id, path in labels.items():
            scene = store.scenes[scene_id]
            if not scene.complete:
                bad.append(
                    _aside(scene, path, "it is not predicted completely: geochip.infer could not read its image")
                )
            else:
                try:
                    confusions[scene_id] = confusion_of_scene(store, scene, instead.get(str(path), str(path)), config)
                except LabelError as error:
                    bad.append(_aside(scene, path, str(error)))
            progress.advance()
    return confusions, bad


def confusion_of_scene(store: PredictionStore, scene: PredictedScene, label: str, config: RunConfig) -> Confusion:
    """Count one scene's pixels, block by block; pixels without data and outside of chips.aoi are left out.

    Raises:
        LabelError: when the label, or the area of interest, cannot be used.
    """
    grid = Grid(height=scene.height, width=scene.width, transform=Affine(*scene.transform), crs=scene.crs or None)
    rules = LabelRules(classes=config.data.classes, labels=config.labels)
    aoi, area = aoi_path(config, scene.split, scene.scene_id), None
    if aoi is not None:
        area = read_aoi(str(aoi), grid, config.chips.aoi_layer)
    classes = len(store.class_names)
    total = np.zeros((classes, classes), np.int64)
    with SceneLabel(label, grid, rules, aoi=area) as scene_label:
        for block in blocks(scene.height, scene.width, store.block):
            total += confusion_matrix(scene_label.read(block), store.read(scene, block), classes)
    return total


def evaluation(
    store: PredictionStore, confusions: Mapping[str, Confusion], left_out: Sequence[SetAside]
) -> dict[str, Any]:
    """The content of eval.json."""
    overall = _sum(confusions)
    splits = sorted({store.scenes[scene_id].split for scene_id in confusions})
    return {
        "overall": evaluation_items(overall, store.class_names),
        "per_scene": {name: evaluation_items(one, store.class_names) for name, one in confusions.items()},
        "confusion_matrix": overall.tolist(),
        "class_names": list(store.class_names),
        "split": splits[0] if len(splits) == 1 else splits,
        "scenes": len(confusions),
        "left_out": [{"scene_id": item.scene_id, "split": item.split, "reason": item.reason} for item in left_out],
        "prediction_store": str(store.path),
        "model_sha256": store.attrs["model_sha256"],
        "split_overlap": store.attrs.get("split_overlap"),
        "window": store.attrs["window"],
        "stride": store.attrs["stride"],
        "blend": store.attrs["blend"],
        "geochip_version": geochip.__version__,
    }


def _sum(confusions: Mapping[str, Confusion]) -> Confusion:
    total: Confusion = np.sum(list(confusions.values()), axis=0, dtype=np.int64)
    return total


def show(class_names: Sequence[str], confusions: Mapping[str, Confusion]) -> None:
    """Print the scores: plain text where standard output is no terminal."""
    console = Console(highlight=False)
    overall = _sum(confusions)
    tables = {f"{len(confusions)} scenes": _class_table(class_names, overall)}
    if len(class_names) <= _CLASSES_SHOWN:
        tables["confusion matrix, pixels"] = _confusion_table(class_names, overall)
    if len(confusions) > 1:
        few = len(confusions) <= _SCENES_SHOWN
        title = "scenes by mean IoU" if few else f"the {_SCENES_SHOWN} scenes of lowest mean IoU"
        tables[title] = _scene_table(confusions)
    for title, table in tables.items():
        console.print(f"\n{title}", style="bold")
        console.print(table)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first)
    for name in others:
        table.add_column(escape(name), justify="right")
    return table


def _class_table(class_names: Sequence[str], overall: Confusion) -> Table:
    table = _table("class", "precision", "recall", "F1", "IoU", "true pixels", "predicted")
    all_scores = scores(overall)
    for name, one in zip(class_names, all_scores.classes, strict=True):
        shown = map(_number, (one.precision, one.recall, one.f1, one.iou))
        table.add_row(escape(name), *shown, str(one.gt_count), str(one.pred_count))
    mean = all_scores.average
    table.add_row("weighted average", *map(_number, (mean.precision, mean.recall, mean.f1, mean.iou)))
    table.add_row("mean of classes", "", "", "", _number(mean.mean_iou))
    return table


def _confusion_table(class_names: Sequence[str], overall: Confusion) -> Table:
    table = _table("truth \\ predicted", *class_names)
    for name, row in zip(class_names, overall.tolist(), strict=True):
        table.add_row(escape(name), *map(str, row))
    return table


def _scene_table(confusions: Mapping[str, Confusion]) -> Table:
    all_scores = {scene_id: scores(one).average for scene_id, one in confusions.items()}
    known = {scene_id: one.mean_iou for scene_id, one in all_scores.items() if one.mean_iou is not None}
    lowest = sorted(known, key=lambda scene_id: (known[scene_id], scene_id))[:_SCENES_SHOWN]
    table = _table("scene", "mean IoU", "F1", "accuracy", "pixels")
    for scene_id in lowest:
        one = all_scores[scene_id]
        shown = map(_number, (one.mean_iou, one.f1, one.accuracy))
        table.add_row(escape(scene_id), *shown, str(int(confusions[scene_id].sum())))
    return table


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


if __name__ == "__main__":
    # Run under its real name, like the other commands.
    from geochip.evaluate import main as _main

    sys.exit(run_command(_main))
