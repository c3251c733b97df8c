import json
from pathlib import Path

import numpy as np
import pytest

from neuroage.files import atomic_path, digest_file, digest_text, write_json


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_temporary_file_keeps_the_suffix_and_is_not_the_target(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "scan.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        assert not (tmp_path / "scan.nii.gz").exists()
        temporary.write_bytes(b"x")
    assert (tmp_path / "scan.nii.gz").read_bytes() == b"x"


def test_not_a_number_becomes_null_and_arrays_become_lists(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": np.array([1.5, np.inf]), "z": Path("p")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": None, "y": [1.5, None], "z": "p"}


def test_a_file_and_its_text_have_one_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("brain")
    assert digest_file(tmp_path / "a") == digest_text("brain")
