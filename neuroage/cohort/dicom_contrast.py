"""What kind of image a DICOM volume is, in plain words: by its name, and by the timing of its sequence.

The name decides where it says something, because people know what they ran; the timing decides where it is silent.
Only words of the lists below are repeated: a description may hold anything, a patient's name too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from neuroage.cohort.dicom_volumes import DicomVolume

# Modality -> how names say it; the first that fits wins, so special names stand before plain ones.
NAMES: tuple[tuple[str, str], ...] = (
    ("localizer", r"locali[sz]er|scout|survey|3[ _-]?pl(?:ane)?\b|\bloc\b"),
    ("dwi", r"dwi|dti|diff(?:usion)?|\badc\b|tracew?\b"),
    ("bold", r"bold|fmri|resting"),
    ("asl", r"p?c?asl\b|arterial spin"),
    ("perfusion", r"perfusion|\bdsc\b|\bdce\b"),
    ("fieldmap", r"field ?map|b0 ?map|gre_field"),
    ("swi", r"swi|swan|t2\*|t2 ?star|qsm|hemo|veno"),
    ("pca", r"\bpca\b|phase contrast"),
    ("tof", r"tof|\bmra\b|angio|inflow"),
    ("t1", r"t1[ _-]?(?:w[ _-]?)?flair"),
    ("flair", r"flair|dark[ _-]?fluid|tirm"),
    ("t1", r"t1|mp2?[ _-]?rage|spgr|bravo|3d ?tfe|tfl3d|vibe"),
    ("pd", r"pd(?:[ _+/-]?t2|w)?(?![a-z])|proton|density"),
    ("t2", r"t2"),
)  # fmt: skip
POST_CONTRAST = re.compile(r"(?<![a-z])(?:gd|gado\w*|post|\+c|c\+|t1c|ce|km)(?![a-z])|contrast")
NO_CONTRAST = re.compile(r"(?<![a-z])(?:no|non|without|w/?o|pre|native)[ _-]*(?:contrast|gd|gad\w*|ce|km)(?![a-z])")
ANATOMICAL = ("t1", "t1c", "t2", "pd", "flair", "tof", "swi", "ct")
# Values of ImageType (PS3.3 C.8.3.1.1.1 and the vendors' own) that no scanner measured.
COMPUTED = {
    "MIP": "a maximum projection", "MINIP": "a minimum projection", "PROJECTION IMAGE": "a projection",
    "MPR": "a reformat", "REFORMATTED": "a reformat", "CSA MPR": "a reformat", "CSA MIP": "a maximum projection",
    "SUBTRACT": "a subtraction", "SUBTRACTION": "a subtraction", "SCREEN SAVE": "a screenshot",
    "SCREENSHOT": "a screenshot", "POSDISP": "a screenshot of the planning", "ADC": "a map", "FA": "a map",
    "T1 MAP": "a map", "T2 MAP": "a map", "CURVED": "a curved reformat",
}  # fmt: skip
NOT_MAGNITUDE = {
    "P": "a phase image", "PHASE": "a phase image", "PHASE MAP": "a phase image", "R": "a real part",
    "REAL": "a real part", "I": "an imaginary part", "IMAGINARY": "an imaginary part",
}  # fmt: skip
SCREENSHOT_KINDS = frozenset({"OT", "SC"})


@dataclass(frozen=True)
class Guess:
    """What a volume is taken for.

    Attributes:
        modality: Canonical spelling, "localizer", or "" when nothing tells.
        reason: The figures and the word of the name that speak for it.
        unfit: Why it is no anatomical image, "" when it is one.
    """

    modality: str
    reason: str
    unfit: str = ""


def guess_contrast(volume: DicomVolume) -> Guess:
    """Say what kind of image a volume is, and why.

    Args:
        volume: As grouped; headers alone count.

    Example:
        >>> guess_contrast(volume).reason  # doctest: +SKIP
        'TR 2300 ms, TE 2.98 ms, TI 900 ms, 3-D, 192 slices of 1 mm; its name says MPRAGE'
    """
    named, word = _by_name(volume)
    timed = _by_timing(volume)
    modality = named or timed
    if named in ("pd", "t2") and timed in ("pd", "t2"):
        modality = timed  # one series of both echoes, named after both
    if volume.series.kind == "CT":
        modality, named, timed = "ct", "", ""
    said_so = POST_CONTRAST.search(volume.series.text) and not NO_CONTRAST.search(volume.series.text)
    if modality == "t1" and (volume.series.contrast_agent or said_so):
        modality = "t1c"
    reason = describe(volume)
    if named:
        reason += f"; its name says {word.upper()}"
        if timed and timed != named and modality == named:
            reason += f", though the timing looks like {timed}"
    elif timed:
        reason += f"; the timing is that of {'an angiogram' if timed == 'tof' else timed}"
    if modality == "t1c":
        reason += ", with contrast agent"
    return Guess(modality, reason, _unfit(volume, modality))


def describe(volume: DicomVolume) -> str:
    """Give timing, dimensions and slices, such as "TR 2300 ms, TE 2.98 ms, 3-D, 192 slices of 1 mm"."""
    series = volume.series
    timing = (("TR", series.tr_ms), ("TE", volume.frames[0].echo_ms), ("TI", series.ti_ms))
    parts = [f"{name} {value:.4g} ms" for name, value in timing if value == value and value > 0]
    if series.kind == "MR":
        parts.append("3-D" if series.is_3d else "2-D")
    n = len(volume.frames)
    thick = f" of {series.thickness_mm:.3g} mm" if series.thickness_mm == series.thickness_mm else ""
    return ", ".join([*parts, f"{n} slice{'s' * (n != 1)}{thick}"])


def _by_name(volume: DicomVolume) -> tuple[str, str]:
    text = volume.series.text.replace("_", " ")
    for modality, pattern in NAMES:
        if match := re.search(rf"(?<![a-z])(?:{pattern})", text):
            return modality, match[0].strip()
    return "", ""


def _by_timing(volume: DicomVolume) -> str:
    """Guess the contrast from the sequence.

    The bounds are those of textbooks for 1.5 and 3 T (McRobbie, MRI from Picture to Proton, chapter 3), set wide.
    """
    series, echo, repetition, inversion = (
        volume.series,
        volume.frames[0].echo_ms,
        volume.series.tr_ms,
        volume.series.ti_ms,
    )
    if series.kind not in ("MR", "") or echo != echo:
        return ""
    if series.angio:
        return "tof"
    if "EP" in series.sequence:
        return ""
    if "GR" in series.sequence and "SE" not in series.sequence:
        if inversion > 200 or "MP" in series.sequence:
            return "t1"
        if echo >= 15:
            return "swi"
        return "t1" if echo <= 7 and repetition <= 1000 and not series.flip_degrees < 8 else ""
    if inversion > 1400 and echo > 50:
        return "flair"
    if repetition >= 1500:
        return "t2" if echo >= 60 else "pd" if echo <= 40 else ""
    return "t1" if echo <= 40 and repetition <= 1200 else ""


def _unfit(volume: DicomVolume, modality: str) -> str:
    types = volume.frames[0].image_type
    for word in types:
        if word in COMPUTED:
            return f"{COMPUTED[word]}, computed from another series"
    for word in types[2:]:
        if word in NOT_MAGNITUDE:
            return NOT_MAGNITUDE[word]
    secondary = "SECONDARY" in types[1:2] and "LOCALIZER" not in types and not _placed(volume)
    if secondary or volume.series.kind in SCREENSHOT_KINDS:
        return "a screenshot or other secondary picture"
    if "LOCALIZER" in types or modality == "localizer":
        return "a localizer"
    if re.search(r"(?<![a-z])(?:mip|minip|subtraction|projection)(?![a-z])", volume.series.text.replace("_", " ")):
        return "a projection or subtraction, as its name says"
    if re.search(r"t[12] ?map|t1_images|rms map", volume.series.text):
        return "a map, as its name says"
    if re.search(r"(?<![a-z])inv[ _-]?[12](?!\d)", volume.series.text.replace("_", " ")):
        return "one inversion of MP2RAGE, not the image made of both"
    if volume.series.kind not in ("MR", "CT"):
        return "neither MR nor CT"
    if modality not in ANATOMICAL:
        return f"{modality.upper()}, no anatomical image" if modality else "nothing says which contrast it has"
    return ""


def _placed(volume: DicomVolume) -> bool:
    return all(frame.position is not None for frame in volume.frames)
