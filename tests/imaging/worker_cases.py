"""What may happen to a job; a module of its own, since every worker process imports it."""

from __future__ import annotations

import os
import signal
from typing import Any

from neuroage.errors import DataError


def work(job: str) -> Any:
    """Do what a word says: what may happen to a job."""
    if job == "bad":
        raise DataError("a bad scan")
    if job == "itk":
        raise RuntimeError("in itkImage.hxx:179\nFailed to allocate memory for image.")
    if job == "killer":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "greedy":
        return len(bytearray(2_000_000_000))
    if job == "threads":
        import numpy  # noqa: F401  (loads linear algebra)
        import SimpleITK as sitk
        from threadpoolctl import threadpool_info

        return {
            "itk": sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(),
            "blas": max((pool["num_threads"] for pool in threadpool_info()), default=0),
            "numba": os.environ["NUMBA_NUM_THREADS"],
        }
    return job.upper()
