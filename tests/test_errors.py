import pickle

import pytest

from neuroage.errors import DataError, InfeasibleError, NeuroageError, RefusedError, UsageError, did_you_mean


def test_a_message_says_what_what_was_expected_and_what_to_do() -> None:
    error = DataError("age -1 in row 3", expected="0 to 120 years", fix="Correct the row.")
    assert str(error) == "age -1 in row 3; expected 0 to 120 years. Correct the row."


def test_every_kind_has_its_own_exit_code() -> None:
    codes = [kind.exit_code for kind in (NeuroageError, UsageError, DataError, InfeasibleError, RefusedError)]
    assert codes == [1, 2, 3, 4, 5]


def test_an_error_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(RefusedError("a", expected="b", fix="C.")))
    assert (type(error), str(error)) == (RefusedError, "a; expected b. C.")


@pytest.mark.parametrize(("word", "suggested"), [("zscor", "'zscore'"), ("xyz", "")])
def test_a_near_word_is_suggested_and_all_values_are_named(word: str, suggested: str) -> None:
    said = did_you_mean(word, ["zscore", "mean"])
    assert "'zscore', 'mean'" in said
    assert ("did you mean " + suggested in said) == bool(suggested)
