from pathlib import Path

import pytest

from neuroage.errors import UsageError
from neuroage.runs.recipe import Recipe, recipe_differences
from neuroage.runs.shipped import find_recipe, shipped_recipes
from neuroage.training.train import check_recipe

BAD = """\
modality: t1
optm: {lr: 3}
optim:
  lr: -3
  schedule: cosin
prepare:
  sise: [1, 2, 3]
training:
  epochs: many
"""


def test_all_problems_come_in_one_report_with_lines_and_suggestions(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    with pytest.raises(UsageError) as caught:
        Recipe.load(tmp_path / "bad.yaml")
    said = str(caught.value)
    for part in (
        "5 problems",
        "line 2, optm",
        "did you mean 'optim'",
        "line 4, optim.lr",
        "greater than 0",
        "line 5, optim.schedule",
        "line 7, prepare.sise",
        "did you mean 'size'",
        "line 9, training.epochs",
        "'many'",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("backbone", "{name: cnn, nblocks: 3}", "did you mean 'n_blocks'"),
        ("backbone", "{name: cn}", "did you mean 'cnn'"),
        ("task", "{name: age_regression, loss: l3}", "'l1', 'huber' or 'mse'"),
        ("augment", "[{step: flop}]", "did you mean 'flip'"),
        ("augment", "[{step: flip, q: 1}]", "no such option"),
        ("augment", "[{torchio: RandomMotin}]", "did you mean 'RandomMotion'"),
    ],
)
def test_options_of_other_rooms_are_reported_with_the_recipes_lines(
    tmp_path: Path, key: str, value: str, part: str
) -> None:
    (tmp_path / "r.yaml").write_text(f"modality: t1\n{key}: {value}\n")
    with pytest.raises(UsageError) as caught:
        check_recipe(Recipe.load(tmp_path / "r.yaml"))
    assert "line 2" in str(caught.value)
    assert part in str(caught.value)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("seed: 1\nmodality: t1\nseed: 2\n")
    with pytest.raises(UsageError, match=r"line 3.*seed.*line 1"):
        Recipe.load(tmp_path / "r.yaml")


def test_a_saved_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe = Recipe(seed=7).updated("optim.lr=1e-4", "augment=[{step: flip}]", "backbone={name: sfcn}")
    recipe.save(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml").digest == recipe.digest


def test_overrides_are_typed_and_later_ones_win() -> None:
    recipe = Recipe().updated("optim.lr=1e-4", "optim.lr=2e-4", "training.patience=null", "head.hidden=[32, 8]")
    assert (recipe.optim.lr, recipe.training.patience, recipe.head.hidden) == (2e-4, None, (32, 8))


def test_another_backbone_by_override_drops_the_options_of_the_former() -> None:
    assert (
        Recipe.from_dict({"backbone": {"name": "cnn", "n_blocks": 3}}).updated("backbone.name=sfcn").backbone.options
        == {}
    )


@pytest.mark.parametrize("override", ["optim.lr", "=3", "optim.lr.x=3", "optim.lr=[", "optim=4"])
def test_a_wrong_override_is_one_clear_sentence(override: str) -> None:
    with pytest.raises(UsageError):
        Recipe().updated(override)


def test_differences_name_only_what_differs() -> None:
    recipes = {"a": Recipe(), "b": Recipe().updated("optim.lr=0.5")}
    assert recipe_differences(recipes) == {"a": {"optim.lr": 0.001}, "b": {"optim.lr": 0.5}}


def test_every_shipped_recipe_is_complete_and_valid() -> None:
    recipes = shipped_recipes()
    assert {"t1", "tof", "t1_small", "tof_binary", "torchio", "smoke"} <= set(recipes)
    assert len(recipes) >= 6
    for path in recipes.values():
        check_recipe(Recipe.load(path))
        assert path.read_text(encoding="utf-8").startswith("# ")


def test_a_recipe_is_found_by_path_by_name_and_by_the_name_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 3\n")
    assert find_recipe(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    assert find_recipe("t1_small") == find_recipe("elsewhere/t1_small.yaml") == shipped_recipes()["t1_small"]
    with pytest.raises(UsageError, match="did you mean 't1_small'"):
        find_recipe("t1_smal")
