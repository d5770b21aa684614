import re

import pytest
import yaml

from geochip.run_file import parse_command
from helpers import ROOT

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
    assert len(BLOCKS) == TEXT.count("```") // 2 == 13


def test_the_quoted_stack_is_understood(tmp_path):
    found = re.search(r"`--data.stack='(.*?)'`", TEXT)
    config = parse_command([f"--data.stack={found[1]}"], command="chipping", description="").config
    assert config.data.stack == ("{split}/height_{id}.tif",)
