import re

import numpy as np
import pytest
import yaml

from geochip.chip_prepare import planned_windows, prepare
from geochip.run_file import parse_command
from helpers import ROOT, write_image, write_label

TEXT = (ROOT / "docs" / "chipping.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_run_file_that_is_shown_is_one(tmp_path, block):
    file = tmp_path / "run.yaml"
    file.write_text(block)
    config = parse_command([f"--config={file}"], command="chipping", description="").config
    for section, keys in yaml.safe_load(block).items():
        for key, value in keys.items():
            found = getattr(getattr(config, section), key)
            if not isinstance(value, dict):
                assert (list(found) if isinstance(found, tuple) else found) == (
                    [str(one) for one in value] if key == "ignore" else value
                )


def test_there_are_as_many_as_were_written():
    assert len(BLOCKS) == TEXT.count("```") // 2 == 15


def test_the_quoted_stack_is_understood(tmp_path):
    found = re.search(r"`--data.stack='(.*?)'`", TEXT)
    config = parse_command([f"--data.stack={found[1]}"], command="chipping", description="").config
    assert config.data.stack == ("{split}/height_{id}.tif",)


def test_one_orthophoto_is_a_data_set(tmp_path):
    (block,) = (block for block in BLOCKS if "block: 100" in block)
    (tmp_path / "run.yaml").write_text(block)
    write_image(tmp_path / "ortho.tif", np.zeros((3, 2000, 2000), np.uint8), compress="deflate")
    write_label(tmp_path / "ortho.geojson", [])
    flags = [f"--config={tmp_path / 'run.yaml'}", f"--data.root={tmp_path}", f"--run_dir={tmp_path / 'run'}"]
    config = parse_command(flags, command="chipping", description="").config
    ready = prepare(config)
    chips = {split.split: split.chips for split in ready.plan.splits}
    # Of four million pixels some 2.8 million are of train, less what is near to other splits.
    assert 150 < chips["train"] < 560
    assert 60 < chips["val"] < 180
    assert 60 < chips["test"] < 180
    squares = {split.split: covered(split.scenes[0], config) for split in ready.plan.splits}
    assert not (
        squares["train"] & squares["val"] | squares["train"] & squares["test"] | squares["val"] & squares["test"]
    )


def covered(planned, config):
    """The squares, east and north, that the corners of a scene's windows lie in."""
    found = set()
    for window in planned_windows(planned, config):
        for row in (window.row_off + 0.5, window.row_stop - 0.5):
            for col in (window.col_off + 0.5, window.col_stop - 0.5):
                x, y = planned.scene.transform @ (col, row)
                found.add((x // 100, y // 100))
    return found
