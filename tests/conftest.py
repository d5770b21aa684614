import logging
from pathlib import Path

import pytest
from distributed import LocalCluster


@pytest.fixture(scope="session")
def dask_address():
    """A running cluster of two worker processes: tests that do not start their own save its start-up time."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
        silence_logs=logging.ERROR,
    ) as cluster:  # fmt: skip
        yield cluster.scheduler_address


@pytest.fixture(scope="session")
def real_data():
    """Real scenes, where a checkout has them beside it; they are not part of this repository."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not (path / "vegas" / "train").is_dir():
        pytest.skip(f"no real scenes in {path}: they are not distributed with geochip")
    return path
