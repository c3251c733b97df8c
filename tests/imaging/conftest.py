"""What tests of pixels share: a small cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from neuroage.imaging.machine import ITK_THREADS


@pytest.fixture(scope="session")
def dask_cluster() -> Iterator[Any]:
    """Two worker processes of Dask on this machine, each with one thread; a dead one is replaced."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=":0",  # any port that is free
        silence_logs=50,
        env={ITK_THREADS: "2"},  # more than one, so that a test sees it capped
    ) as started:
        yield started
