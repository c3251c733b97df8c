"""How tables made elsewhere spell the sets of a split, and how they name an image."""

from __future__ import annotations

import os
import re

from neuroage.errors import DataError, did_you_mean

SET_WORDS = {
    "train": "train", "training": "train", "tr": "train", "trn": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation", "tune": "validation",
    "test": "test", "testing": "test", "ts": "test", "holdout": "test", "hold_out": "test",
    "left_out": "left_out", "excluded": "left_out", "exclude": "left_out", "unused": "left_out",
    "none": "left_out", "": "left_out",
}  # fmt: skip
SET_COLUMNS = ("set", "split", "subset", "partition", "dataset_split", "group_split", "phase")
FOLD_COLUMNS = ("fold", "folds", "fold_id", "cv_fold", "kfold")


def read_set_word(word: object, where: str) -> str:
    """Give train, validation, test or left_out for any usual spelling.

    Raises:
        DataError: When the word is none of them; names `where` it stands.
    """
    text = str(word).strip().lower()
    if text not in SET_WORDS:
        raise DataError(f"{where}: set {word!r} is unknown", expected=did_you_mean(text, SET_WORDS))
    return SET_WORDS[text]


def spellings_of_name(name: str, *, is_path: bool) -> list[str]:
    """Give the ways in which a table may name a subject or image, the surest first.

    Example:
        >>> spellings_of_name("images/a.nii.gz", is_path=True)
        ['images/a.nii.gz', 'images/a.nii.gz', 'a.nii.gz', 'a']
    """
    if not name:
        return []
    spellings = [name, name.removeprefix("sub-")]
    if is_path:
        file = os.path.basename(name.replace("\\", "/"))
        spellings += [file, re.sub(r"(\.nii)?\.[A-Za-z0-9]+$", "", file)]
    return spellings
