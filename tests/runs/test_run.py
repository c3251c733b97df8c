from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuroage.cohort import Cohort, Split
from neuroage.errors import DataError, UsageError
from neuroage.runs.contract import InputContract
from neuroage.runs.predictions import average_members, read_predictions, save_predictions
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run, find_runs
from neuroage.runs.seeds import child_seed


def test_a_run_keeps_what_it_was_made_of(tmp_path: Path, cohort: Cohort, split: Split, recipe: Recipe) -> None:
    run = Run.create(tmp_path / "run", recipe, cohort, split, fold=0)
    assert run.recipe.digest == recipe.digest
    assert run.split.digest == split.digest
    assert run.cohort.digest == cohort.digest
    assert run.about["status"] == "training"
    assert not run.complete


def test_a_used_folder_is_never_overwritten(tmp_path: Path, cohort: Cohort, split: Split, recipe: Recipe) -> None:
    Run.create(tmp_path / "run", recipe, cohort, split, fold=0)
    with pytest.raises(UsageError, match="--resume"):
        Run.create(tmp_path / "run", recipe, cohort, split, fold=0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        Run.create(tmp_path / "other", recipe, cohort, split, fold=0)


def test_opening_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        Run.open(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        Run.open(tmp_path / "nowhere")


def test_members_are_found_inside_their_parent_only(
    tmp_path: Path, cohort: Cohort, split: Split, recipe: Recipe
) -> None:
    parent = Run.create_parent(tmp_path / "ensemble", recipe, cohort, split)
    for seed in range(2):
        Run.create(parent.member_folder(f"seed{seed}"), recipe, cohort, split, fold=0, member=f"seed{seed}")
    assert [member.name for member in parent.members] == ["seed0", "seed1"]
    assert [run.name for run in find_runs(tmp_path)] == ["ensemble"]


def test_a_run_predicts_the_labels_that_all_of_its_members_learnt(
    tmp_path: Path, cohort: Cohort, split: Split, recipe: Recipe
) -> None:
    parent = Run.create_parent(tmp_path / "ensemble", recipe, cohort, split)
    assert parent.target == {"kind": "age"}
    for seed, labels in enumerate((["Mass", "Hernia", "Edema"], ["Mass", "Edema"])):
        member = Run.create(parent.member_folder(f"seed{seed}"), recipe, cohort, split, fold=0, member=f"seed{seed}")
        member.update(target={"kind": "multilabel", "labels": labels})
    assert parent.members[0].target["labels"] == ["Mass", "Hernia", "Edema"]
    assert parent.target == {"kind": "multilabel", "labels": ["Mass", "Edema"]}


def test_a_copy_is_whole_and_never_replaces(tmp_path: Path, cohort: Cohort, split: Split, recipe: Recipe) -> None:
    run = Run.create(tmp_path / "run", recipe, cohort, split, fold=0)
    copied = Run(run.copy_to(tmp_path / "copy"))
    assert copied.recipe.digest == recipe.digest
    with pytest.raises(UsageError, match="exists"):
        run.copy_to(tmp_path / "copy")


def test_predictions_keep_every_digit_and_gap_is_predicted_minus_age(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"scan_id": ["01"], "subject_id": ["007"], "set": ["validation"], "age": [40.0], "predicted_age": [1 / 3]}
    )
    save_predictions(table, tmp_path / "p.csv")
    back = read_predictions(tmp_path / "p.csv")
    assert back["subject_id"].tolist() == ["007"]
    assert back["predicted_age"].tolist() == [1 / 3]
    assert back["gap"].tolist() == [1 / 3 - 40.0]


def test_a_table_without_predictions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("scan_id,subject_id,predicted\na,b,3\n")
    with pytest.raises(DataError, match="predicted_age"):
        read_predictions(tmp_path / "p.csv")
    with pytest.raises(UsageError):
        read_predictions(tmp_path / "none.csv")


def test_members_are_averaged_scan_by_scan_and_their_spread_is_told() -> None:
    first = pd.DataFrame(
        {"scan_id": ["a", "b"], "subject_id": ["a", "b"], "age": [30.0, 40.0], "predicted_age": [30.0, 50.0]}
    )
    averaged = average_members([first, first.assign(predicted_age=[34.0, 50.0])])
    assert averaged["predicted_age"].tolist() == [32.0, 50.0]
    assert averaged["members_std"].tolist() == [2.0, 0.0]
    assert averaged["gap"].tolist() == [2.0, 10.0]


def _contract() -> InputContract:
    records = [
        {"native_spacing_mm": [1.0, 1.0, 1.0], "mean": 0.1 * k, "std": 1.0, "foreground_share": 0.4} for k in range(10)
    ]
    return InputContract.of("t1", (2.0, 2.0, 2.0), (8, 8, 8), records, np.linspace(20, 80, 10))


def test_a_scan_like_the_training_scans_raises_no_concern() -> None:
    assert (
        _contract().concerns({"native_spacing_mm": [1.0, 1.0, 1.0], "mean": 0.5, "std": 1.0, "foreground_share": 0.4})
        == []
    )


def test_centimetres_for_millimetres_and_odd_intensities_raise_concerns() -> None:
    concerns = _contract().concerns(
        {"native_spacing_mm": [0.1, 0.1, 0.1], "mean": 90.0, "std": 1.0, "foreground_share": 0.4}
    )
    assert len(concerns) == 2
    assert "mean intensity" in concerns[0].what
    assert "voxels" in concerns[1].what


def test_a_contract_survives_json() -> None:
    contract = _contract()
    assert InputContract.from_dict(contract.to_dict()).age_years == (20.0, 50.0, 80.0)


def test_child_seeds_differ_by_name_and_never_change() -> None:
    seeds = {child_seed(seed, name, epoch) for seed in range(5) for name in ("order", "dropout") for epoch in range(50)}
    assert len(seeds) == 500
    assert child_seed(0, "order", 3) == 5486038029339273987


@pytest.mark.parametrize("name", ["run.json", "contract.json", "selftest.json"])
def test_a_damaged_file_of_a_run_is_named(
    name: str, tmp_path: Path, cohort: Cohort, split: Split, recipe: Recipe
) -> None:
    run = Run.create(tmp_path / "run", recipe, cohort, split, fold=0)
    (run.folder / name).write_text("{")
    with pytest.raises(DataError, match=f"{name} is damaged"):
        getattr(run, {"run.json": "about"}.get(name, name.removesuffix(".json")))


def test_a_run_without_its_contract_says_so(tmp_path: Path, cohort: Cohort, split: Split, recipe: Recipe) -> None:
    with pytest.raises(UsageError, match=r"has no contract\.json"):
        _ = Run.create(tmp_path / "run", recipe, cohort, split, fold=0).contract
