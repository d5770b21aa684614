import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geochip.blending import Sliding, pack, predict_block
from geochip.errors import WorkError
from geochip.windows import Window, blend_weights, blocks, sliding_windows


class FakeScene:
    """Two bands, the row and the column of each pixel; counts what is read."""

    def __init__(self, height, width, valid=None):
        self.image = np.stack(np.indices((height, width))).astype(np.uint16)
        self.valid = np.ones((height, width), bool) if valid is None else valid
        self.shape = height, width
        self.largest = 0

    def read(self, window):
        height, width = self.shape
        assert window.row_off < height
        assert window.col_off < width
        self.largest = max(self.largest, window.height * window.width)
        over = ((0, max(window.row_stop - height, 0)), (0, max(window.col_stop - width, 0)))
        image, valid = self.image[:, *window.slices], self.valid[window.slices]
        return np.pad(image, ((0, 0), *over)), np.pad(valid, over)


def identity(image_nbhw):
    """A network that returns its input: the predictions say where they were made."""
    return image_nbhw.astype(np.float32)


def whole(scene, sliding, block, network=identity, order=1):
    height, width = scene.shape
    probability = np.full((sliding.classes, height, width), np.nan, np.float32)
    valid = np.zeros((height, width), bool)
    for one in list(blocks(height, width, block))[::order]:
        probability[:, *one.slices], valid[one.slices] = predict_block(one, height, width, sliding, scene.read, network)
    return probability, valid


def sliding_of(size=64, stride=32, blend="hann", batch_size=3, classes=2):
    return Sliding(size=size, stride=stride, blend=blend, batch_size=batch_size, classes=classes)


@pytest.mark.parametrize("blend", ["hann", "average"])
@pytest.mark.parametrize(
    ("shape", "size", "stride", "block"),
    [
        ((317, 211), 64, 32, 100),  # no multiple of anything
        ((20, 13), 64, 32, 2048),  # smaller than the window
        ((20, 211), 64, 50, 64),  # smaller along one axis
        ((128, 128), 64, 64, 64),  # no overlap
        ((100, 90), 64, 1, 77),  # as much overlap as can be
    ],
)
def test_predictions_come_back_where_they_belong(shape, size, stride, block, blend):
    scene = FakeScene(*shape)
    probability, valid = whole(scene, sliding_of(size, stride, blend), block)
    assert valid.all()
    # A shift by one pixel would be an error of 1.
    np.testing.assert_allclose(probability, np.stack(np.indices(shape)), atol=1e-2)


def test_no_byte_depends_on_blocks_or_their_order():
    scene, sliding = FakeScene(150, 130), sliding_of(48, 20)

    def network(image_nbhw):
        # As sensitive to a window's place as a network with padding is.
        rows = np.arange(48, dtype=np.float32)[:, None] ** 2
        return np.sin(image_nbhw.astype(np.float32) * 12.9898 + rows)

    reference, _ = whole(scene, sliding, 2048, network)
    for block in (16, 33, 50, 149):
        for order in (1, -1):
            np.testing.assert_array_equal(whole(scene, sliding, block, network, order)[0], reference)


def test_the_network_gets_full_batches_always():
    shapes = set()

    def network(image_nbhw):
        shapes.add((image_nbhw.shape, image_nbhw.dtype))
        return identity(image_nbhw)

    whole(FakeScene(150, 130), sliding_of(batch_size=5), 40, network)
    assert shapes == {((5, 2, 64, 64), np.dtype(np.uint16))}


def test_memory_does_not_grow_with_the_scene():
    large = FakeScene(900, 800)
    whole(large, sliding_of(), 100)
    assert large.largest <= (100 + 2 * 63) ** 2


def test_pixels_without_data_are_not_valid_and_windows_without_any_are_not_run():
    valid = np.ones((200, 200), bool)
    valid[:150, :] = False
    ran = []

    def network(image_nbhw):
        ran.extend(image_nbhw[:, 0].max(axis=(1, 2)))
        return identity(image_nbhw)

    scene = FakeScene(200, 200, valid)
    probability, found = whole(scene, sliding_of(), 70, network)
    np.testing.assert_array_equal(found, valid)
    np.testing.assert_allclose(probability[:, 150:], scene.image[:, 150:], atol=1e-2)
    # Windows that end above row 150 hold nothing; zeros fill up the batches.
    assert min(last for last in ran if last) >= 150


def test_a_network_that_answers_nan_is_an_error():
    with pytest.raises(WorkError, match="the model's probabilities are not numbers"):
        whole(FakeScene(70, 70), sliding_of(), 64, lambda image: np.full_like(image, np.nan, np.float32))


geometry = st.tuples(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 24), st.integers(1, 24), st.integers(1, 40),
    st.sampled_from(["hann", "average"]),
).filter(lambda drawn: drawn[3] <= drawn[2])  # fmt: skip


@given(geometry)
@settings(max_examples=60, deadline=None)
def test_weights_are_positive_and_a_constant_stays_constant(drawn):
    height, width, size, stride, block, blend = drawn
    weights = np.zeros((height + size, width + size))
    for window in sliding_windows(height, width, size, stride):
        weights[window.slices] += blend_weights(size, blend)
    assert (weights[:height, :width] > 0).all()

    sliding = sliding_of(size, stride, blend)
    constant = np.float32([0.3, 0.7])

    def network(image_nbhw):
        return np.broadcast_to(constant[:, None, None], image_nbhw.shape)

    probability, _ = whole(FakeScene(height, width), sliding, block, network)
    np.testing.assert_allclose(probability, np.broadcast_to(constant[:, None, None], probability.shape), rtol=1e-5)
    np.testing.assert_array_equal(probability, whole(FakeScene(height, width), sliding, 1000, network)[0])


@given(geometry, st.data())
@settings(max_examples=60, deadline=None)
def test_touching_are_the_windows_of_the_grid_that_hold_a_pixel_of_the_block(drawn, data):
    height, width, size, stride, block, _ = drawn
    sliding = sliding_of(size, stride)
    grid = sliding_windows(height, width, size, stride)
    assert sliding.count(height, width) == len(grid)
    one = data.draw(st.sampled_from(list(blocks(height, width, block))))
    assert sliding.touching(one, height, width) == [window for window in grid if window.intersection(one)]


def test_pack():
    probability = np.float32([[[0.5, 0.1, 1.0000001, 0.9]], [[0.5, 0.9, 0, 0.1]]])
    class_hw, packed = pack(probability, np.array([[True, True, True, False]]))
    # Of equals the first; probability in steps of 1/254; nodata is 255 in both.
    assert class_hw.tolist() == [[0, 1, 0, 255]]
    assert packed.tolist() == [[[127, 25, 254, 255]], [[127, 229, 0, 255]]]
    assert class_hw.dtype == packed.dtype == np.uint8


def test_a_windows_own_pixels():
    # One window and one block: the weights cancel, whatever they are.
    scene = FakeScene(10, 10)
    probability, _ = predict_block(
        Window(row_off=2, col_off=3, height=4, width=5), 10, 10, sliding_of(10, 10), scene.read, identity
    )
    np.testing.assert_allclose(probability, scene.image[:, 2:6, 3:8], rtol=1e-6)
