import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroage.errors import UsageError
from neuroage.imaging.shards import Shard, parse_shard


@given(n_items=st.integers(0, 60), n=st.integers(1, 12))
def test_every_item_is_in_exactly_one_share(n_items: int, n: int) -> None:
    shares = [Shard(index, n).of(range(n_items)) for index in range(1, n + 1)]
    assert sorted(item for share in shares for item in share) == list(range(n_items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def slurm(task: int, first: int, last: int, count: int) -> dict[str, str]:
    values = {"ID": task, "MIN": first, "MAX": last, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_a_task_of_an_array_has_its_share() -> None:
    assert parse_shard("3/20") == Shard(3, 20)
    assert parse_shard("auto", slurm(0, 0, 9, 10)) == Shard(1, 10)
    assert parse_shard("auto", slurm(10, 1, 10, 10)) == Shard(10, 10)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "a/3", "3", "1/2/3", "-1/3"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="i/n"):
        parse_shard(text)


def test_an_array_with_gaps_and_no_array_are_refused() -> None:
    with pytest.raises(UsageError, match="without gaps"):
        parse_shard("auto", slurm(5, 1, 9, 5))
    with pytest.raises(UsageError, match="sbatch --array"):
        parse_shard("auto", {})
