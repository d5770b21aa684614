"""How good a prediction is: the confusion matrix and what follows from it. NumPy alone.

Everything is counted in pixels. A confusion matrix has the truth in its rows and the prediction in its columns, so
matrices of scenes, blocks or ranks add up, and every score of their union follows from the sum.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geochip.config import IGNORE

Confusion = npt.NDArray[np.int64]


def confusion_matrix(label: npt.ArrayLike, prediction: npt.ArrayLike, classes: int) -> Confusion:
    """Count the pixels of each pair of true and predicted class.

    Args:
        label: true class ids, 0 to `classes` - 1, or 255 where a pixel counts for nothing; integers, any shape.
        prediction: predicted class ids, likewise; of the same shape.
        classes: number of classes, at most 255.

    Returns:
        int64 array (classes, classes): row = truth, column = prediction. Pixels with 255 in either are left out.

    Raises:
        ValueError: when the shapes differ, or a value is neither a class id nor 255.
    """
    truth, guess = np.asarray(label), np.asarray(prediction)
    if truth.shape != guess.shape:
        raise ValueError(
            f"label has the shape {truth.shape} and prediction {guess.shape}: they must be the same pixels"
        )
    for name, values in (("label", truth), ("prediction", guess)):
        _check_class_ids(name, values, classes)
    counts = (truth != IGNORE) & (guess != IGNORE)
    # int64 before the product: uint8 would wrap from 16 classes on.
    pairs = truth[counts].astype(np.int64) * classes + guess[counts]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64, copy=False)


def _check_class_ids(name: str, values: npt.NDArray[Any], classes: int) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} is of {values.dtype}: class ids are integers")
    wrong = (values != IGNORE) & ((values >= classes) | (values < 0))
    if wrong.any():
        raise ValueError(
            f"{name} holds the value {int(values[wrong][0])} in {int(wrong.sum())} pixels: with {classes} classes it "
            f"must be 0 to {classes - 1}, or {IGNORE} for pixels that count for nothing"
        )


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """The scores of one class against all others; None where a score is 0/0 and so says nothing.

    TP, FP, FN, TN are the class's true and false positives and negatives, in pixels.
    """

    gt_count: int
    """Pixels that are of the class: TP + FN."""
    pred_count: int
    """Pixels that were predicted as the class: TP + FP."""
    recall: float | None
    """TP / (TP + FN): what share of the class was found. Also called sensitivity."""
    precision: float | None
    """TP / (TP + FP): what share of what was found is of the class."""
    f1: float | None
    """2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall (van Rijsbergen 1979; Dice 1945). Unlike
    2 P R / (P + R) it is 0, not 0/0, for a class that is there and was never found."""
    iou: float | None
    """TP / (TP + FP + FN), intersection over union (Jaccard 1912; Everingham et al. 2010, PASCAL VOC)."""
    specificity: float | None
    """TN / (TN + FP): what share of everything else was left alone."""


@dataclass(frozen=True, kw_only=True)
class AverageScores:
    """Means over the classes; None when there is no pixel to average over."""

    recall: float | None
    """Mean weighted by the classes' true pixels, as Raster Vision's (see `scores`); so are the next three."""
    precision: float | None
    f1: float | None
    iou: float | None
    specificity: float | None
    mean_iou: float | None
    """Plain mean of the IoU of the classes that have one (mIoU), each class counting alike."""
    accuracy: float | None
    """Share of pixels whose class was predicted: trace / sum of the confusion matrix."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """All scores of one confusion matrix."""

    classes: tuple[ClassScores, ...]
    """One for each class, in the order of the class ids."""
    average: AverageScores
    """Over all classes."""


def scores(confusion: npt.ArrayLike) -> Scores:
    """Scores per class and on average.

    The average is Raster Vision's: Σ score_k · gt_k / Σ gt_k over the classes k, gt_k being the class's true pixels. A
    class whose score is 0/0 is left out of the upper sum and not of the lower one, as there (a class that was never
    predicted then lowers the average precision instead of raising it; scikit-learn's `average="weighted"` with
    `zero_division=0` is the same).

    Args:
        confusion: (classes, classes) counts, row = truth, column = prediction.

    Returns:
        The scores; None stands for 0/0.
    """
    matrix = np.asarray(confusion, dtype=np.int64)
    per_class = tuple(_class_scores(matrix, index) for index in range(len(matrix)))
    total = int(matrix.sum())

    def weighted(name: str) -> float | None:
        known = [(getattr(one, name), one.gt_count) for one in per_class]
        return _ratio(sum(score * weight for score, weight in known if score is not None), total)

    ious = [one.iou for one in per_class if one.iou is not None]
    average = AverageScores(
        recall=weighted("recall"),
        precision=weighted("precision"),
        f1=weighted("f1"),
        iou=weighted("iou"),
        specificity=weighted("specificity"),
        mean_iou=_ratio(sum(ious), len(ious)),
        accuracy=_ratio(int(np.trace(matrix)), total),
    )
    return Scores(classes=per_class, average=average)


def _counts(matrix: Confusion, index: int) -> tuple[int, int, int, int]:
    """One class against the rest: (TN, FP, FN, TP)."""
    tp = int(matrix[index, index])
    fp, fn = int(matrix[:, index].sum()) - tp, int(matrix[index].sum()) - tp
    return int(matrix.sum()) - tp - fp - fn, fp, fn, tp


def _class_scores(matrix: Confusion, index: int) -> ClassScores:
    tn, fp, fn, tp = _counts(matrix, index)
    return ClassScores(
        gt_count=tp + fn,
        pred_count=tp + fp,
        recall=_ratio(tp, tp + fn),
        precision=_ratio(tp, tp + fp),
        f1=_ratio(2 * tp, 2 * tp + fp + fn),
        iou=_ratio(tp, tp + fp + fn),
        specificity=_ratio(tn, tn + fp),
    )


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def evaluation_items(confusion: npt.ArrayLike, class_names: tuple[str, ...] | list[str]) -> list[dict[str, Any]]:
    """The items of Raster Vision's eval.json, with IoU added: one for each class, and the average last.

    Args:
        confusion: (classes, classes) counts, row = truth, column = prediction.
        class_names: as many names, in the order of the class ids.

    Returns:
        JSON-ready dictionaries. A class's has class_id, class_name, gt_count, pred_count, count_error,
        relative_frequency, metrics, conf_mat [[TN, FP], [FN, TP]] in pixels, conf_mat_frac (the same as shares of all
        pixels), and both once more by name as conf_mat_dict and conf_mat_frac_dict. The average's has the whole
        confusion matrix. What is 0/0 is None.

    Raises:
        ValueError: when the number of names is not the number of classes.
    """
    matrix = np.asarray(confusion, dtype=np.int64)
    if matrix.shape != (len(class_names), len(class_names)):
        raise ValueError(
            f"a confusion matrix of the shape {matrix.shape} does not go with {len(class_names)} class names"
        )
    all_scores = scores(matrix)
    items = [
        _class_item(matrix, index, name, one)
        for index, (name, one) in enumerate(zip(class_names, all_scores.classes, strict=True))
    ]
    average = {
        "class_name": "average",
        "metrics": _metrics(all_scores.average)
        | {"mean_iou": all_scores.average.mean_iou, "accuracy": all_scores.average.accuracy},
        "gt_count": sum(item["gt_count"] for item in items),
        "pred_count": sum(item["pred_count"] for item in items),
        "count_error": sum(item["count_error"] for item in items),
        "conf_mat": matrix.tolist(),
        "conf_mat_frac": _fractions(matrix),
    }
    return [*items, average]


def _class_item(matrix: Confusion, index: int, name: str, one: ClassScores) -> dict[str, Any]:
    counts = _counts(matrix, index)
    total = int(matrix.sum())
    keys = ("TN", "FP", "FN", "TP")
    binary = np.array(counts, dtype=np.int64).reshape(2, 2)
    return {
        "class_id": index,
        "class_name": name,
        "gt_count": one.gt_count,
        "pred_count": one.pred_count,
        "count_error": abs(one.gt_count - one.pred_count),
        "relative_frequency": _ratio(one.gt_count, total),
        "metrics": _metrics(one),
        "conf_mat": binary.tolist(),
        "conf_mat_frac": _fractions(binary),
        "conf_mat_dict": dict(zip(keys, counts, strict=True)),
        "conf_mat_frac_dict": {key: _ratio(count, total) for key, count in zip(keys, counts, strict=True)},
    }


def _metrics(one: ClassScores | AverageScores) -> dict[str, float | None]:
    return {
        "recall": one.recall,
        "precision": one.precision,
        "f1": one.f1,
        "sensitivity": one.recall,
        "specificity": one.specificity,
        "iou": one.iou,
    }


def _fractions(matrix: Confusion) -> list[list[float | None]]:
    total = int(matrix.sum())
    return [[_ratio(int(count), total) for count in row] for row in matrix]
