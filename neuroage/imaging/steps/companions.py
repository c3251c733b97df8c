"""What lies beside a scan and takes part in its preparation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Companions:
    """Files that a scan is prepared with.

    Attributes:
        reference: The reference scan of the same session (`registration.reference`); None where there is none.
        mask: The scan's mask file (`brain.mask: file`); None where there is none.
        found: Folder where transforms that were found are kept, so that other preparations of the same scan need not
            search again; None keeps none.
    """

    reference: Path | None = None
    mask: Path | None = None
    found: Path | None = None
