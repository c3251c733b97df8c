"""`neuroage qc`, and `--exclude` on every verb that takes a cohort."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from neuroage.cli.qc import prepare_command
from neuroage.cohort import Cohort, Split
from neuroage.imaging.store import Store

TINY = [
    *("--set", "prepare={spacing_mm: 8.0, size: [12, 12, 12], centre: image}"),
    *("--set", "backbone={name: cnn, n_blocks: 2, features: 4}"),
    *("--set", "training={epochs: 1, batch_size: 8, precision: fp32}"),
    *("--set", "augment=[]"),
]
PREPARE = TINY[:2]
EXCLUDED = ("sub-00_t1", "sub-01_t1", "sub-02_t1")


@pytest.fixture
def folder(cohort: Cohort, split: Split, tmp_path: Path) -> Path:
    """A folder with a cohort, its split, and a table of three scans that are not wanted."""
    cohort.to_csv(tmp_path / "cohort.csv")
    split.save(tmp_path / "split.csv")
    rows = [*zip(EXCLUDED, ("blurred", "blurred", "cut off"), strict=True), ("ghost", "motion")]
    pd.DataFrame(rows, columns=["scan_id", "reason"]).to_csv(tmp_path / "exclude.csv", index=False)
    return tmp_path


def test_the_page_is_made_of_what_is_prepared(
    type_in: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROAGE_STORE", str(folder / "store"))  # in the shared one, others have prepared those, too
    code, _, _ = type_in("prepare", "--config", "smoke", *PREPARE, "--exclude", "exclude.csv")
    assert code == 0
    code, said, told = type_in("qc", "--config", "smoke", *PREPARE, "--exclude", "exclude.csv", "--json")
    assert code == 0, told
    made = json.loads(said)
    assert made["n_scans"] == 48 and made["not_prepared"] == list(EXCLUDED), "those were not prepared"
    page = (folder / "qc.html").read_text(encoding="utf-8")
    assert '["sub-02_t1","cut off"]' in page, "the table's ticks are on the page"
    assert "neuroage prepare --config smoke --set" in page
    code, said, told = type_in("qc", "--config", "smoke", *PREPARE, "--out", "other.html")
    assert code == 0 and "Page: other.html" in said and "3 scans are not prepared: `neuroage prepare" in told


def test_failures_that_prepare_listed_are_shown_with_their_reason(
    type_in: Callable[..., Any], folder: Path, cohort: Cohort
) -> None:
    broken = folder / "broken.nii.gz"
    broken.write_bytes(b"no scan")
    table = cohort.select(modality="t1").table.head(8).copy()
    table.loc[table.index[0], "path"] = str(broken)
    Cohort(table).to_csv(folder / "cohort.csv")
    shared = ("--config", "smoke", *PREPARE, "--failures", "failures.csv")
    assert type_in("prepare", *shared, "--max-failed-share", "0.5").code == 0
    made = json.loads(type_in("qc", *shared, "--json").out)
    assert list(made["problems"]) == ["sub-00_t1"] == made["worst_first"][:1] and made["not_prepared"] == []
    assert str(folder) not in made["problems"]["sub-00_t1"]


def test_the_command_that_prepares_names_every_option_of_the_page() -> None:
    command = prepare_command(Path("a b.csv"), "tof", "tof_vessels", ["seed=1"], Path("s"), "t1")
    assert command == (
        "neuroage prepare --data 'a b.csv' --modality tof --config tof_vessels --set seed=1 --register-to t1 --store s"
    )


def test_mistakes_are_said_in_one_sentence(type_in: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    code, _, told = type_in("qc", "--config", "smoke", "--store", tmp_path / "empty")
    assert code == 2 and "None of the 48 scans is prepared" in told and "`neuroage prepare" in told
    code, _, told = type_in("qc", "--out", "qc.csv")
    assert code == 2 and "ends in .html" in told


@pytest.mark.parametrize(
    "words",
    [
        ["prepare"],
        ["preview"],
        ["split"],
        ["train"],
        ["compare", "t1", "tof"],
        ["tune", "smoke", "--trials", 1],
        ["lr-range"],
        ["qc"],
    ],
    ids=lambda words: str(words[0]),
)
def test_every_verb_that_reads_a_cohort_reads_the_exclusions(
    type_in: Callable[..., Any], folder: Path, words: list[object]
) -> None:
    (folder / "exclude.csv").write_text("subject\nsub-00\n", encoding="utf-8")
    if words[0] == "split":
        (folder / "split.csv").unlink()
    code, _, told = type_in(*words, "--exclude", "exclude.csv")
    assert (code, "exclude.csv has no column scan_id" in told) == (3, True), told


def test_excluded_scans_are_neither_split_nor_trained_on_nor_predicted(
    type_in: Callable[..., Any], folder: Path, cohort: Cohort, store: Store
) -> None:
    code, _, told = type_in(
        "split", "--modality", "t1", "--n-validation", 12, "--exclude", "exclude.csv", "--out", "s.csv"
    )
    assert code == 0
    assert "exclude.csv: 3 scans excluded (2 blurred, 1 cut off)" in told
    assert told.count("1 id is not in the cohort: ghost") == 1
    dealt = Split.load(folder / "s.csv").table
    assert not {"sub-00", "sub-01", "sub-02"} & set(dealt.loc[dealt["set"] != "left_out", "subject_id"])

    code, _, told = type_in("train", "--config", "smoke", *TINY, "--exclude", "exclude.csv", "--out", "run")
    assert code == 0, told
    used = Cohort.from_csv(folder / "run" / "cohort.csv").table["scan_id"]
    assert len(used) and not set(EXCLUDED) & set(used), "a split of before serves, too"

    code, _, told = type_in("predict", "run", "cohort.csv", "--exclude", "exclude.csv", "--force")
    assert code == 0, told
    assert len(pd.read_csv(folder / "predictions.csv")) == 48 - 3
    code, _, told = type_in("evaluate", "run", "--exclude", "exclude.csv")
    assert code == 2 and "--data" in told
