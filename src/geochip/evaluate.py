"""How good the predictions are: the prediction store against the labels, over all scenes and for each.

    python -m geochip.evaluate --config run.yaml

Every scene's label is drawn on the scene's own pixels and counted against its predicted classes, block by block. Of a
scene that squares of ground divide, the pixels of infer.split's squares are counted and no others.
eval.json has what Raster Vision's has, in the same places, and more.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from rich.markup import escape
from rich.table import Table

import geochip
from geochip.config import DataConfig, RunConfig
from geochip.errors import DamagedError, InputError, WorkError, run_command
from geochip.evaluate_ground import Part, blocks_counted, describe_blocks, find_parts, grid_of, squares_of
from geochip.files import is_there, make_directory, write_durably
from geochip.labels import (
    Grid,
    LabelError,
    LabelRules,
    Placed,
    SceneLabel,
    describe_miss,
    find_misses,
    indexed_labels,
    listed,
    read_aoi,
)
from geochip.metrics import Confusion, confusion_matrix, evaluation_items, scores
from geochip.names import composed
from geochip.progress import ProgressReport, console, counted
from geochip.run_file import parse_run_config
from geochip.scenes import (
    Outputs,
    SetAside,
    Squares,
    aoi_path,
    label_path,
    labels_of_stranger,
    refuse_read_later,
    require_shared_label,
    settle_bad_scenes,
)
from geochip.store import PredictedScene, PredictionStore, journal_path, prediction_records, read_journal
from geochip.windows import blocks

_SCENES_SHOWN = 10
_CLASSES_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a scene's prediction is compared with."""

    label: Path
    split: str
    """The split whose templates it and the area of interest are found by; "" where they name none."""


def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    config, _ = parse_run_config(argv, command="evaluate", description="Compare predictions with labels.")
    store = open_finished(config.prediction_store)
    check_classes(store, config.data)
    labels, unlabelled = find_labels(store, config)
    refuse_eval_over_input(config, labels)
    require_met(store, labels, config)
    make_directory(config.eval_path.parent, "run_dir")
    squares = squares_of(store, config)
    parts = find_parts(store, labels, squares, config)
    confusions, bad = count(store, labels, parts, config)
    if confusions and not any(one.any() for one in confusions.values()):
        raise WorkError(
            f"none of {counted(len(confusions), 'scene')} has a pixel with a prediction and a label, so that there is "
            "nothing to score; see that chips.aoi lies where the scenes lie, and that labels are not ignored as a whole"
        )
    for item in unlabelled:
        print(f"left out: {item}")
    if confusions:
        document = evaluation(store, confusions, parts, squares, [*unlabelled, *bad])
        write_durably(config.eval_path, json.dumps(document, indent=2, allow_nan=False).encode())
        show(store.class_names, confusions)
        if document["blocks"] is not None:
            print(describe_blocks(document["blocks"]))
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


def refuse_eval_over_input(config: RunConfig, labels: Mapping[str, Truth]) -> None:
    """Raise `InputError` when the scores would be written over something that is read, or cannot be written."""
    outputs = Outputs(option="run_dir", remedy="choose another run_dir", files={config.eval_path: "the scores"})
    refuse_read_later(config, outputs, {str(truth.label): "data.label" for truth in labels.values()})


def open_finished(path: Path) -> PredictionStore:
    """Open a prediction store whose inference came to its end.

    Raises:
        InputError: when there is none, or when blocks are missing.
    """
    store = PredictionStore(path)
    if not store.complete:
        total = sum(1 for scene in store.scenes.values() for _ in blocks(scene.height, scene.width, store.block))
        _, records, _ = read_journal(journal_path(path), prediction_records)
        done = sum(key.startswith("block/") for key in records)
        raise InputError(
            f"{path} is not complete: {done} of its {total} blocks are predicted, and missing ones would count as "
            "nodata; run python -m geochip.infer again, which goes on where it stopped"
        )
    return store


def check_classes(store: PredictionStore, data: DataConfig) -> None:
    """Raise `InputError` when labels and predictions do not mean the same by a class id."""
    if tuple(map(composed, store.class_names)) != data.classes:
        raise InputError(
            f"data.classes: {', '.join(data.classes)} is not what {store.path} was predicted with, which is "
            f"{', '.join(store.class_names)}; set data.classes to that, or predict with a model of these classes"
        )


def find_labels(store: PredictionStore, config: RunConfig) -> tuple[dict[str, Truth], list[SetAside]]:
    """The label of each predicted scene, by the scene's id, and the scenes that have none.

    A scene of no split, whose image was named on the command line, has the label that there is under its name.

    Raises:
        InputError: when no scene has a label.
    """
    labels: dict[str, Truth] = {}
    unlabelled: list[SetAside] = []
    for scene in store.scenes.values():
        places = (
            {label_path(config, scene.split, scene.scene_id): scene.split}
            if scene.split
            else labels_of_stranger(config, scene.scene_id)
        )
        for path, split in places.items():
            require_shared_label(config, split, path)
        there = [path for path in places if is_there(path)]
        if len(there) == 1:
            labels[scene.scene_id] = Truth(label=there[0], split=places[there[0]])
        else:
            unlabelled.append(_aside(scene, next(iter(places)), _why_unlabelled(scene, list(places), there)))
    if not labels:
        raise InputError(
            f"data.label: none of the {len(unlabelled)} scenes of {store.path} has a label file; the first: "
            f"{unlabelled[0]}; correct data.label or data.root, or predict scenes of a labelled split"
        )
    return labels, unlabelled


def _why_unlabelled(scene: PredictedScene, places: Sequence[Path], there: Sequence[Path]) -> str:
    listed = " or ".join(map(str, places))
    if there:
        return (
            f"it belongs to no split, and there are several labels of its name ({', '.join(map(str, there))}); give "
            "data.label without {split}"
        )
    return f"there is no label file {listed}" if scene.split else f"it belongs to no split, and there is no {listed}"


def _aside(scene: PredictedScene, path: Path, reason: str) -> SetAside:
    return SetAside(scene_id=scene.scene_id, split=scene.split, path=str(path), reason=reason)


def require_met(store: PredictionStore, labels: Mapping[str, Truth], config: RunConfig) -> None:
    """Raise `InputError` when all labels lie elsewhere than their scene, as far as bounds tell."""
    missed = find_misses(
        {scene_id: place_of(store.scenes[scene_id], truth, config) for scene_id, truth in labels.items()}
    )
    if len(missed) == len(labels):
        raise InputError(_all_missed([str(one) for one in missed.values()]))


def _all_missed(texts: Sequence[str]) -> str:
    return (
        f"{listed(texts)}\nno label meets its scene (see above; {counted(len(texts), 'scene')}), and the scores would "
        "be of background alone; correct the labels or data.label"
    )


def place_of(scene: PredictedScene, truth: Truth, config: RunConfig) -> Placed:
    """A label and the scene that it is drawn on."""
    return Placed(path=str(truth.label), image=scene.scene_id, grid=grid_of(scene), layer=config.labels.layer)


def count(
    store: PredictionStore, labels: Mapping[str, Truth], parts: Mapping[str, Part], config: RunConfig
) -> tuple[dict[str, Confusion], list[SetAside]]:
    """Count each labelled scene's pixels.

    Returns:
        Confusion matrices by scene id; and the scenes that could not be predicted, or whose label cannot be used.

    Raises:
        WorkError: when no label meets its scene, which bounds did not tell.
    """
    confusions: dict[str, Confusion] = {}
    bad: list[SetAside] = []
    missed: dict[str, str] = {}
    directory = config.eval_path.with_name(f"{config.eval_path.name}.labels")
    files = [str(truth.label) for truth in labels.values()]
    with (
        indexed_labels(files, directory, option="run_dir", layer=config.labels.layer) as copies,
        ProgressReport("evaluating", len(labels)) as progress,
    ):
        instead = dict(copies)
        for scene_id, truth in labels.items():
            scene = store.scenes[scene_id]
            if not scene.complete:
                reason = "it is not predicted completely: geochip.infer could not read its image"
                bad.append(_aside(scene, truth.label, reason))
            else:
                try:
                    confusions[scene_id], met = confusion_of_scene(
                        store, scene, truth, parts[scene_id], config, instead.get(str(truth.label))
                    )
                    if not met:
                        missed[scene_id] = describe_miss(place_of(scene, truth, config))
                except (LabelError, DamagedError) as error:
                    # A scene with lost blocks is not scored: they would count as nodata.
                    bad.append(_aside(scene, truth.label, str(error)))
            progress.advance()
    if confusions and len(missed) == len(confusions):
        raise WorkError(_all_missed(list(missed.values())))
    # Of a label that several scenes share, one that it meets is enough.
    shared = {labels[scene_id].label for scene_id in confusions if scene_id not in missed}
    if texts := [text for scene_id, text in missed.items() if labels[scene_id].label not in shared]:
        print(listed(texts))
    return confusions, bad


def confusion_of_scene(
    store: PredictionStore,
    scene: PredictedScene,
    truth: Truth,
    part: Part,
    config: RunConfig,
    label: str | None = None,
) -> tuple[Confusion, bool]:
    """Count one scene's pixels, block by block; pixels without data and outside of chips.aoi are left out.

    Args:
        store: the predictions.
        scene: the scene.
        truth: its label.
        part: what to count of it.
        config: how labels are drawn.
        label: what to read in place of the label, such as a copy with an index.

    Returns:
        The counts, and whether a feature of the label meets the scene, if it has any.

    Raises:
        LabelError: when the label, or the area of interest, cannot be used.
    """
    grid = grid_of(scene)
    rules = LabelRules(classes=config.data.classes, labels=config.labels)
    ground = part.region
    if (area := _area_of_interest(config, scene, part.split or truth.split, grid)) is not None:
        ground = area if ground is None else shapely.intersection(ground, area)
    classes = len(store.class_names)
    total = np.zeros((classes, classes), np.int64)
    with SceneLabel(label or str(truth.label), grid, rules, aoi=ground) as scene_label:
        for block in blocks(scene.height, scene.width, store.block):
            place = shapely.box(block.col_off, block.row_off, block.col_stop, block.row_stop)
            if ground is not None and not shapely.intersects(ground, place):
                continue
            total += confusion_matrix(scene_label.read(block), store.read(scene, block), classes)
        return total, not scene_label.missed


def _area_of_interest(config: RunConfig, scene: PredictedScene, split: str, grid: Grid) -> shapely.Geometry | None:
    """The area in which a scene is compared, in its pixels; None: everywhere.

    Raises:
        LabelError: when it cannot be used, or nothing tells which one it is.
    """
    if config.chips.aoi is None:
        return None
    if "{split}" in config.chips.aoi and not split:
        raise LabelError(
            f"chips.aoi ({config.chips.aoi}) has an area for each split, and the scene belongs to none; give one "
            "without {split}, or compare it everywhere with --chips.aoi null"
        )
    return read_aoi(str(aoi_path(config, split, scene.scene_id)), grid, config.chips.aoi_layer)


def evaluation(
    store: PredictionStore,
    confusions: Mapping[str, Confusion],
    parts: Mapping[str, Part],
    squares: Squares | None,
    left_out: Sequence[SetAside],
) -> dict[str, Any]:
    """The content of eval.json."""
    overall = _sum(confusions)
    splits = sorted({parts[scene_id].split for scene_id in confusions})
    return {
        "overall": evaluation_items(overall, store.class_names),
        "per_scene": {name: evaluation_items(one, store.class_names) for name, one in confusions.items()},
        "confusion_matrix": overall.tolist(),
        "class_names": list(store.class_names),
        "split": splits[0] if len(splits) == 1 else splits,
        "scenes": len(confusions),
        "blocks": blocks_counted(squares, {scene_id: parts[scene_id] for scene_id in confusions}),
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
    out = console()
    overall = _sum(confusions)
    tables = {counted(len(confusions), "scene"): _class_table(class_names, overall)}
    if len(class_names) <= _CLASSES_SHOWN:
        tables["confusion matrix, pixels"] = _confusion_table(class_names, overall)
    if len(confusions) > 1:
        few = len(confusions) <= _SCENES_SHOWN
        title = "scenes by mean IoU" if few else f"the {_SCENES_SHOWN} scenes of lowest mean IoU"
        tables[title] = _scene_table(confusions)
    for title, table in tables.items():
        out.print(f"\n{title}", style="bold")
        out.print(table)


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
