"""A few hundred broken inputs, the same in every run; thousands by `make fuzz`.

Each case asserts: the command ends by itself, with exit code 0, 1, 2 or 130 and a message; without a traceback; and
nothing outside run_dir has changed.
"""

import os

import pytest

from fuzz.cases import run_case
from fuzz.pristine import make
from fuzz.targets import KINDS

SEED = 11
EACH = int(os.environ.get("GEOCHIP_FUZZ_EACH", "13"))
# Kinds whose faults are being mended; each is run by `make fuzz`.
WAITING: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, dask_address):
    return make(tmp_path_factory.mktemp("fuzz") / "pristine", dask_address)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WAITING])
def test_whatever_is_broken_a_command_ends_as_it_should(tmp_path, pristine, dask_address, kind):
    verdicts = [
        run_case(pristine, tmp_path, dask_address, seed=SEED, number=number, kind=kind) for number in range(EACH)
    ]
    failed = [f"{verdict}\n{verdict.output}" for verdict in verdicts if verdict.fault]
    assert not failed, "\n\n".join(failed)
