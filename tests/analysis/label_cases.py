"""Label predictions with a known answer: logits of positives are shifted by a known amount."""

from __future__ import annotations

import numpy as np
import pandas as pd

NAMES = ("Edema", "Mass", "Hernia")


def multilabel_predictions(*, shift=1.5, n_scans=240, n_subjects=120, labels=NAMES, seed=0, noise_seed=1, sharp=1.0):
    """Predictions of a multilabel (or binary) model, two scans a subject; `sharp` above 1 makes it overconfident."""
    random, noise = np.random.default_rng(seed), np.random.default_rng(noise_seed)
    subject = np.arange(n_scans) % n_subjects
    table = pd.DataFrame(
        {
            "scan_id": [f"i{index:04d}" for index in range(n_scans)],
            "subject_id": [f"p{index:03d}" for index in subject],
            "set": "test",
            "fold": 0,
            "member": 0,
        }
    )
    for at, label in enumerate(labels):
        rate = (0.4, 0.25, 0.15)[at % 3]
        truth = (random.random(n_scans) < rate).astype(float)
        # Bayes' rule for two normals a distance `shift` apart: these probabilities are right as they are.
        evidence = shift * truth + noise.normal(size=n_scans)
        logit = np.log(rate / (1 - rate)) + shift * evidence - shift**2 / 2
        table[f"target_{label}"] = truth
        table[f"probability_{label}"] = 1 / (1 + np.exp(-sharp * logit))
    return table


def constant_predictions(table, labels=NAMES):
    """The same scans, each label at its rate."""
    return table.assign(**{f"probability_{label}": table[f"target_{label}"].mean() for label in labels})


def target_of(*labels, kind="multilabel"):
    return {"kind": kind, "labels": list(labels or NAMES)}


def class_predictions(*, strength=2.0, n_scans=200, classes=("a", "b", "c", "d"), seed=0, noise_seed=1):
    """Predictions of classes of unequal size, four scans a group."""
    random, noise = np.random.default_rng(seed), np.random.default_rng(noise_seed)
    share = np.arange(len(classes), 0, -1) / sum(range(1, len(classes) + 1))
    group = np.arange(n_scans) // 4
    truth = random.choice(len(classes), group.max() + 1, p=share)[group]
    logits = noise.normal(size=(n_scans, len(classes)))
    logits[np.arange(n_scans), truth] += strength
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = pd.DataFrame(
        {
            "scan_id": [f"i{index:04d}" for index in range(n_scans)],
            "subject_id": [f"i{index:04d}" for index in range(n_scans)],
            "group": [f"g{index:03d}" for index in group],
            "set": "test",
            "target_label": np.array(classes)[truth],
        }
    )
    return table.assign(**{f"probability_{name}": chance[:, at] for at, name in enumerate(classes)})
