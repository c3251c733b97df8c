from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from neuroage.analysis import figures, loss_curves, overfitting_onset, overlay_curves
from neuroage.analysis.curves import explain_curves
from neuroage.analysis.drawing import svg_address
from neuroage.analysis.figures import bland_altman, decade_bars, paired_differences, predicted_vs_age
from neuroage.errors import DataError


def texts_of(figure):
    return " | ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def history_of(n_epochs=60, *, turn=30, rise=0.06, fall=0.06, noise=0.25, seed=0):
    """Inner MAE that falls to epoch `turn` and rises after; training MAE that falls all along."""
    random = np.random.default_rng(seed)
    epoch = np.arange(1, n_epochs + 1)
    inner = 5 + 0.4 * np.maximum(turn - epoch, 0) + rise * np.maximum(epoch - turn, 0)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "train_mae": 8 - fall * epoch + 4 + random.normal(0, noise, n_epochs),
            "train_mae_eval": 8 - fall * epoch + random.normal(0, noise, n_epochs),
            "inner_mae": inner + random.normal(0, noise, n_epochs),
            "train_loss": 1 / epoch,
            "inner_loss": 0.8 / epoch,
        }
    )


@pytest.mark.parametrize("draw", [predicted_vs_age, bland_altman, decade_bars, paired_differences])
def test_figures_name_the_models_and_are_the_same_every_time(draw, comparison):
    assert "T1" in texts_of(draw(comparison)) and "TOF" in texts_of(draw(comparison))
    assert svg_address(draw(comparison)) == svg_address(draw(comparison))


def test_the_scatter_shows_every_subject_and_the_mae_of_the_table(comparison):
    figure = predicted_vs_age(comparison)
    panels = [axes for axes in figure.axes if axes.collections]
    assert len(panels) == 3
    for axes, name in zip(panels, ("t1", "tof", "fusion"), strict=True):
        points = np.asarray(axes.collections[0].get_offsets())
        np.testing.assert_allclose(points[:, 0], comparison.subjects["age"])
        np.testing.assert_allclose(points[:, 1], comparison.subjects[f"predicted_age_{name}"])
        assert axes.get_xlim() == axes.get_ylim()
        assert any(f"MAE {comparison.models[name]['mae']:.1f} years" in text.get_text() for text in axes.texts)


def test_of_very_many_subjects_some_are_drawn_evenly_by_age_within_the_limits_of_all(comparison, monkeypatch):
    whole = predicted_vs_age(comparison).axes[0].get_xlim()
    monkeypatch.setattr(figures, "MOST_POINTS", 11)
    axes = predicted_vs_age(comparison).axes[0]
    age = comparison.subjects["age"].to_numpy()
    shown = np.asarray(axes.collections[0].get_offsets())[:, 0]
    np.testing.assert_allclose(shown, age[np.linspace(0, len(age) - 1, 11).round().astype(int)])
    assert axes.get_xlim() == whole


def test_bland_altman_draws_the_mean_and_its_limits(comparison):
    axes = bland_altman(comparison).axes[0]
    heights = [float(np.asarray(line.get_ydata())[0]) for line in axes.lines]
    mean, sd = comparison.models["t1"]["gap_mean"], comparison.models["t1"]["gap_sd"]
    for height in (0.0, mean, mean - 1.96 * sd, mean + 1.96 * sd):
        assert any(height == pytest.approx(drawn) for drawn in heights)
    low, high = axes.get_ylim()
    assert low < comparison.subjects["gap_tof"].min() and comparison.subjects["gap_tof"].max() < high


def test_bars_are_as_high_as_the_table_says(comparison):
    bars = decade_bars(comparison).axes[0].patches
    expected = [row["mae"][name] for name in ("t1", "tof", "fusion") for row in comparison.decades]
    np.testing.assert_allclose([bar.get_height() for bar in bars], expected)


def test_drawing_leaves_the_users_matplotlib_settings_alone(comparison):
    import matplotlib

    before = dict(matplotlib.rcParams)
    svg_address(decade_bars(comparison))
    assert dict(matplotlib.rcParams) == before


def test_loss_curves_explain_training_above_inner_and_mark_best_and_baseline(tmp_path):
    history = history_of()
    figure = loss_curves(history, tmp_path / "curves.png", baseline_mae=18.9, title="T1")
    said = " ".join(texts_of(figure).split())
    best = int(history.loc[history["inner_mae"].idxmin(), "epoch"])
    assert "lies above the inner curve" in said and "That is normal" in said
    assert f"best: epoch {best}, {history['inner_mae'].min():.1f} years" in said
    assert "predict the mean: 18.9 years" in said
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_overfitting_is_marked_where_the_inner_mae_turns():
    for seed in range(10):
        onset = overfitting_onset(history_of(seed=seed), patience=10)
        assert onset is not None and abs(onset - 30) <= 6
    assert "over-fits from epoch" in explain_curves(history_of(), 30, overfitting_onset(history_of()))


def test_a_flat_noisy_curve_a_short_rise_and_joint_falling_get_no_mark():
    flat = [overfitting_onset(history_of(rise=0.0, seed=seed)) for seed in range(40)]
    assert sum(onset is not None for onset in flat) <= 4
    assert overfitting_onset(history_of(n_epochs=36, turn=30), patience=10) is None
    assert overfitting_onset(history_of(turn=80)) is None
    assert overfitting_onset(history_of(fall=-0.05)) is None  # training rises as well: diverging, not over-fitting


def test_whatever_part_of_a_history_there_is_is_drawn():
    history = history_of(n_epochs=3)
    history.loc[0, "inner_mae"] = np.nan
    for columns in (["train_loss"], ["inner_mae"], ["train_mae", "inner_mae"], ["train_mae_eval", "train_loss"]):
        figure = loss_curves(history[["epoch", *columns]], baseline_mae=18.0)
        assert sum(len(axes.get_legend().get_texts()) for axes in figure.axes) == len(columns)
    with pytest.raises(DataError, match="without any curve"):
        loss_curves(history[["epoch"]])
    with pytest.raises(DataError, match="without epochs"):
        loss_curves(history.drop(columns="epoch"))


def test_overlaid_runs_are_named_with_their_lowest_figure(tmp_path):
    runs = {f"run{index}": history_of(seed=index) for index in range(9)} | {"no inner": history_of()[["epoch"]]}
    said = texts_of(overlay_curves(runs, tmp_path / "runs.png", baseline_mae=18.9))
    for name, history in list(runs.items())[:9]:
        assert f"{name}  {history['inner_mae'].min():.1f}" in said
    assert "no inner" not in said
    with pytest.raises(DataError, match="no run has the curve 'speed'"):
        overlay_curves(runs, column="speed")


def test_importing_analysis_stays_light():
    code = (
        "import sys, neuroage.analysis as a; "
        "heavy = {'pandas', 'matplotlib', 'scipy', 'sklearn', 'torch'} & set(sys.modules); assert not heavy, heavy; "
        "a.evaluate, a.compare_models, a.write_comparison; "
        "heavy = {'matplotlib', 'scipy', 'sklearn', 'torch'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_can_be_reached():
    import neuroage.analysis

    for name in neuroage.analysis.__all__:
        assert callable(getattr(neuroage.analysis, name))
    with pytest.raises(AttributeError, match="no attribute 'comapre'"):
        neuroage.analysis.comapre  # noqa: B018
