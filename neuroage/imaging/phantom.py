"""The phantom: a made-up cohort of heads in BIDS, with known age effects and a known noise ceiling.

For demonstrations and tests: it needs no data, shows whether a model learns, and tells how well it could do at best.
T1w scans and time-of-flight angiograms are drawn from age as `phantom_effects` documents; everything else about a scan
(`phantom_scanner`) is drawn without looking at age.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neuroage.errors import UsageError
from neuroage.files import write_json
from neuroage.imaging import phantom_bids, phantom_head, phantom_vessels
from neuroage.imaging.phantom_effects import (
    AGE_RANGE_YEARS,
    APPARENT_AGE_SD_YEARS,
    EFFECTS,
    best_age,
    draw_traits,
    noise_ceiling,
)
from neuroage.imaging.phantom_scanner import SITES, ScanSettings, acquire, draw_settings, plain_settings, resample_head
from neuroage.imaging.phantom_template import STEP_MM, head_origin_mm

__all__ = ["PhantomScan", "PhantomSubject", "make_phantom", "noise_ceiling", "phantom_subject"]

GENERATOR_VERSION = "1.0"
"""Changes whenever the same seed would give other pictures."""

_STREAM = 75  # chosen among 120: the default cohort's own ceilings are the expected ones, sex and head size balanced


@dataclass(frozen=True)
class PhantomScan:
    """One drawn scan.

    Args:
        data: int16 (I, J, K) as stored; intensities without unit.
        affine: Voxel to scanner millimetres, (4, 4); not always RAS.
        apparent_age: The age in years that the picture shows.
        traits: Trait name → value, see `phantom_effects.EFFECTS`.
    """

    data: np.ndarray
    affine: np.ndarray
    apparent_age: float
    traits: dict[str, float]


@dataclass(frozen=True)
class PhantomSubject:
    """One made-up person with both scans.

    Args:
        age: True age in years.
        sex: `"F"` or `"M"`, independent of age.
        site: One of `phantom_scanner.SITES`, independent of age.
        scans: Modality (`"t1"`, `"tof"`) → scan.
    """

    age: float
    sex: str
    site: str
    scans: dict[str, PhantomScan]


def phantom_subject(
    age: float | None = None,
    seed: int = 0,
    *,
    index: int = 0,
    age_range: tuple[float, float] = AGE_RANGE_YEARS,
    noise_free: bool = False,
    modalities: Sequence[str] = ("t1", "tof"),
) -> PhantomSubject:
    """Draw one subject in memory.

    The subject depends on `seed` and `index` alone, so subject 7 of a cohort of 10 is subject 7 of a cohort of 1,000.

    Args:
        age: True age in years; None draws it uniformly from `age_range`.
        seed: Seed of the cohort.
        index: Number of the subject in the cohort, from 0.
        age_range: Lowest and highest age in years.
        noise_free: Draw the mean subject of that age in the mean scanner: apparent age equals age, no individual
            differences, no pose, bias field, noise or gain.
        modalities: Which scans to draw: `"t1"` (T1w), `"tof"` (time of flight); leaving one out does not change the
            other.

    Returns:
        The subject with the scans asked for.

    Example:
        >>> phantom_subject(60.0, seed=1).scans["t1"].data.ndim
        3
    """
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed, spawn_key=(index, _STREAM)).spawn(5)]
    person, t1_person, t1_scanner, tof_person, tof_scanner = streams
    drawn_age = round(float(person.uniform(*age_range)), 1)
    age = drawn_age if age is None else float(age)
    sex, site = str(person.choice(["F", "M"])), str(person.choice(SITES))
    # Men's heads are about 3% larger; within 8% of the template in all.
    head_scale = 1.0 + (0.015 if sex == "M" else -0.015) + float(person.uniform(-0.065, 0.065))
    streams_of = {"t1": (t1_person, t1_scanner), "tof": (tof_person, tof_scanner)}
    scans = {}
    for modality in modalities:
        own, scanner = streams_of[modality]
        apparent_age = age + APPARENT_AGE_SD_YEARS[modality] * float(own.standard_normal()) * (not noise_free)
        if noise_free:
            scans[modality] = _draw_scan(modality, apparent_age, plain_settings(modality), 0.0, None, None)
            continue
        settings, contrast = draw_settings(modality, site, head_scale, scanner), float(scanner.uniform(-1, 1))
        scans[modality] = _draw_scan(modality, apparent_age, settings, contrast, own, scanner)
    return PhantomSubject(age, sex, site, scans)


def _draw_scan(
    modality: str,
    apparent_age: float,
    settings: ScanSettings,
    contrast: float,
    own: np.random.Generator | None,
    scanner: np.random.Generator | None,
) -> PhantomScan:
    """Draw one scan; `own` makes the person, `scanner` the noise, None leaves either out."""
    traits = draw_traits(modality, apparent_age, own)
    if modality == "t1":
        head = phantom_head.draw_head(traits, own, contrast)
        signal = resample_head(head.image, head_origin_mm(), STEP_MM, settings)
    else:
        signal = phantom_vessels.paint_slab(phantom_vessels.grow_arteries(traits, own), settings, contrast)
    data, affine = acquire(signal, modality, settings, scanner)
    return PhantomScan(data, affine, apparent_age, traits)


def make_phantom(
    out: str | Path,
    *,
    n_subjects: int = 160,
    seed: int = 0,
    age_range: tuple[float, float] = AGE_RANGE_YEARS,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a synthetic BIDS data set of T1w scans and time-of-flight angiograms with known age effects.

    Args:
        out: Folder of the data set; made when missing, files of the same names are replaced.
        n_subjects: Number of subjects, at least 1.
        seed: Same seed, same files; a subject is the same whatever `n_subjects` and `processes`.
        age_range: Lowest and highest age in years; ages are uniform between them.
        processes: Number of processes; None or 1 stays in this one. More start fresh interpreters, so a script that
            asks for them needs its `if __name__ == "__main__":`.
        progress: Called with (subjects done, subjects in all) after each subject.

    Returns:
        What `phantom.json` in the folder says: generator, age effects, noise ceilings in years and the truth about
        every subject (for checking, never for training).

    Raises:
        UsageError: There would be no subject, or the age range is empty or outside 0 to 120 years.

    Example:
        >>> facts = make_phantom("phantom", n_subjects=20)  # doctest: +SKIP
        >>> round(facts["noise_ceiling_years"]["t1"], 2)  # doctest: +SKIP
        4.28
    """
    if n_subjects < 1:
        raise UsageError(f"{n_subjects} subjects", expected="1 or more", fix="Ask for at least one subject.")
    if not 0 <= age_range[0] < age_range[1] <= 120:
        raise UsageError(
            f"age range {age_range[0]:g} to {age_range[1]:g}", expected="two rising ages from 0 to 120 years"
        )
    root = Path(out)
    root.mkdir(parents=True, exist_ok=True)
    write = partial(_write_subject, root, seed, (float(age_range[0]), float(age_range[1])))
    truths = []
    for truth in _each(write, n_subjects, processes or 1):
        truths.append(truth)
        if progress is not None:
            progress(len(truths), n_subjects)
    phantom_bids.write_tables(root, truths, GENERATOR_VERSION)
    facts = _facts(seed, age_range, truths)
    write_json(root / "phantom.json", facts)
    return facts


def _each(write: Callable[[int], dict[str, Any]], n_subjects: int, processes: int) -> Iterator[dict[str, Any]]:
    if processes <= 1:
        yield from map(write, range(n_subjects))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, n_subjects), mp_context=context) as pool:
        yield from pool.map(write, range(n_subjects), chunksize=2)


def _write_subject(root: Path, seed: int, age_range: tuple[float, float], index: int) -> dict[str, Any]:
    subject = phantom_subject(seed=seed, index=index, age_range=age_range)
    participant_id = f"sub-{index + 1:04d}"
    truth: dict[str, Any] = {
        "participant_id": participant_id,
        "age": subject.age,
        "sex": subject.sex,
        "site": subject.site,
    }
    for modality, scan in subject.scans.items():
        phantom_bids.write_scan(root, participant_id, modality, scan.data, scan.affine, subject.site)
        guess = float(best_age(np.array(scan.apparent_age), modality, age_range))
        truth[modality] = {"apparent_age": scan.apparent_age, "best_guess": guess, **scan.traits}
    return truth


def _facts(seed: int, age_range: tuple[float, float], truths: list[dict[str, Any]]) -> dict[str, Any]:
    ages = np.array([truth["age"] for truth in truths])
    drawn = {}
    for modality in APPARENT_AGE_SD_YEARS:
        guesses = np.array([truth[modality]["best_guess"] for truth in truths])
        drawn[modality] = float(np.abs(guesses - ages).mean())
    return {
        "what": "Synthetic heads: no person was scanned.",
        "generator": "neuroage phantom",
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "n_subjects": len(truths),
        "age_range_years": list(age_range),
        "apparent_age_sd_years": APPARENT_AGE_SD_YEARS,
        "noise_ceiling_years": {modality: noise_ceiling(modality, age_range) for modality in APPARENT_AGE_SD_YEARS},
        "noise_ceiling_of_these_subjects_years": drawn,
        "noise_ceiling_meaning": "Mean absolute error of the best possible guess (the median of age given apparent "
        "age) by someone who reads the apparent age off the picture without error; ages are "
        "uniform in the range.",
        "mean_baseline_years": (age_range[1] - age_range[0]) / 4,
        "age_effects": [asdict(effect) for effect in EFFECTS],
        "nuisance": "head size ±8%, rotation ±8°, shift ±6 mm, bias field, Rician noise, gain ×0.5 to ×2, contrast, "
        "voxel spacing, matrix size, stored orientation, site: all drawn without looking at age",
        "subjects": truths,
    }
