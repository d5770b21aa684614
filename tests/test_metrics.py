from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geochip.metrics import confusion_matrix, evaluation_items, scores


def test_rows_are_truth_and_columns_prediction():
    label = np.array([[0, 0, 0], [1, 1, 2]], np.uint8)
    prediction = np.array([[0, 1, 1], [1, 2, 2]], np.uint8)
    np.testing.assert_array_equal(confusion_matrix(label, prediction, 3), [[1, 2, 0], [0, 1, 1], [0, 0, 1]])


def test_255_in_either_is_left_out():
    label = np.array([0, 255, 0, 255, 1], np.uint8)
    prediction = np.array([0, 0, 255, 255, 0], np.uint8)
    np.testing.assert_array_equal(confusion_matrix(label, prediction, 2), [[1, 0], [1, 0]])


def test_many_classes_do_not_wrap():
    values = np.arange(255, dtype=np.uint8)
    np.testing.assert_array_equal(confusion_matrix(values, values, 255), np.eye(255, dtype=int))


@pytest.mark.parametrize(
    ("label", "prediction", "name", "value"), [([2], [0], "label", 2), ([0], [254], "prediction", 254)]
)
def test_a_value_that_is_no_class_is_an_error(label, prediction, name, value):
    with pytest.raises(
        ValueError, match=f"{name} holds the value {value} in 1 pixels: with 2 classes it must be 0 to 1"
    ):
        confusion_matrix(np.array(label, np.uint8), np.array(prediction, np.uint8), 2)


def test_negative_ids_fractions_and_other_shapes_are_errors():
    with pytest.raises(ValueError, match="holds the value -1"):
        confusion_matrix(np.array([-1]), np.array([0]), 2)
    with pytest.raises(ValueError, match="label is of float64: class ids are integers"):
        confusion_matrix(np.array([0.5]), np.array([0]), 2)
    with pytest.raises(ValueError, match=r"shape \(2,\) and prediction \(1,\)"):
        confusion_matrix(np.array([0, 1]), np.array([0]), 2)


def test_scores_by_hand():
    # Truth: 8 background, 4 building. Of the buildings 3 are found, and 2 of the background are taken for buildings.
    result = scores([[6, 2], [1, 3]])
    background, building = result.classes
    assert (building.precision, building.recall) == (3 / 5, 3 / 4)
    assert building.f1 == pytest.approx(2 / 3)
    assert building.iou == 3 / 6
    assert building.specificity == 6 / 8
    assert (building.gt_count, building.pred_count) == (4, 5)
    assert (background.precision, background.recall, background.iou) == (6 / 7, 6 / 8, 6 / 9)
    assert result.average.precision == pytest.approx((6 / 7 * 8 + 3 / 5 * 4) / 12)
    assert result.average.recall == result.average.accuracy == 9 / 12
    assert result.average.mean_iou == pytest.approx((6 / 9 + 3 / 6) / 2)


def test_nothing_over_nothing_is_none():
    nowhere = scores([[5, 0], [0, 0]]).classes[1]
    assert (nowhere.precision, nowhere.recall, nowhere.f1, nowhere.iou) == (None, None, None, None)
    assert nowhere.specificity == 1
    empty = scores(np.zeros((2, 2)))
    assert empty.classes[0].precision is None
    assert empty.average.precision is None
    assert empty.average.mean_iou is None


def test_a_class_that_is_never_predicted():
    result = scores([[6, 0], [4, 0]])
    assert result.classes[1].precision is None
    assert (result.classes[1].f1, result.classes[1].recall, result.classes[1].iou) == (0, 0, 0)
    # As Raster Vision and scikit-learn's zero_division=0: left out of the sum, not of what it is divided by.
    assert result.average.precision == pytest.approx(6 / 10 * 6 / 10)


pixels = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 255]), st.sampled_from([0, 1, 2, 3, 255])), max_size=60)


@given(pixels)
def test_scores_agree_with_plain_counting(pairs):
    label, prediction = (np.array([pair[i] for pair in pairs], np.uint8) for i in (0, 1))
    result = scores(confusion_matrix(label, prediction, 4))
    pairs = [(truth, guess) for truth, guess in pairs if 255 not in (truth, guess)]

    def ratio(part, whole):
        return float(Fraction(part, whole)) if whole else None

    weighted = 0
    for k, one in enumerate(result.classes):
        true, found = {i for i, p in enumerate(pairs) if p[0] == k}, {i for i, p in enumerate(pairs) if p[1] == k}
        assert one.gt_count == len(true)
        assert one.pred_count == len(found)
        assert one.recall == ratio(len(true & found), len(true))
        assert one.precision == ratio(len(true & found), len(found))
        assert one.iou == ratio(len(true & found), len(true | found))
        assert one.f1 == ratio(2 * len(true & found), len(true) + len(found))
        rest = set(range(len(pairs))) - true
        assert one.specificity == ratio(len(rest - found), len(rest))
        weighted += (one.iou or 0) * len(true)
    assert result.average.iou == (pytest.approx(weighted / len(pairs)) if pairs else None)


def test_scores_of_a_union_follow_from_the_sum():
    rng = np.random.default_rng(1)
    label, prediction = rng.integers(0, 3, (2, 50, 40)).astype(np.uint8)
    halves = confusion_matrix(label[:20], prediction[:20], 3) + confusion_matrix(label[20:], prediction[20:], 3)
    np.testing.assert_array_equal(halves, confusion_matrix(label, prediction, 3))


def test_items_have_raster_visions_layout():
    background, building, average = evaluation_items([[6, 2], [1, 3]], ["background", "building"])
    assert list(building) == [
        "class_id", "class_name", "gt_count", "pred_count", "count_error", "relative_frequency", "metrics", "conf_mat",
        "conf_mat_frac", "conf_mat_dict", "conf_mat_frac_dict",
    ]  # fmt: skip
    assert (building["class_id"], building["class_name"]) == (1, "building")
    assert (building["gt_count"], building["pred_count"], building["count_error"]) == (4, 5, 1)
    assert building["relative_frequency"] == 4 / 12
    assert building["metrics"] == pytest.approx(
        {"recall": 3 / 4, "precision": 3 / 5, "f1": 2 / 3, "sensitivity": 3 / 4, "specificity": 6 / 8, "iou": 1 / 2}
    )
    assert building["conf_mat"] == [[6, 2], [1, 3]]
    assert building["conf_mat_dict"] == {"TN": 6, "FP": 2, "FN": 1, "TP": 3}
    assert building["conf_mat_frac"] == [[6 / 12, 2 / 12], [1 / 12, 3 / 12]]
    assert background["conf_mat_frac_dict"] == {"TN": 3 / 12, "FP": 1 / 12, "FN": 2 / 12, "TP": 6 / 12}
    assert average["class_name"] == "average"
    assert average["conf_mat"] == [[6, 2], [1, 3]]
    assert (average["gt_count"], average["pred_count"], average["count_error"]) == (12, 12, 2)
    assert average["metrics"]["f1"] == pytest.approx((6 / 7.5 * 8 + 2 / 3 * 4) / 12)


def test_items_need_a_name_for_each_class():
    with pytest.raises(ValueError, match="does not go with 1 class names"):
        evaluation_items([[1, 0], [0, 1]], ["background"])
