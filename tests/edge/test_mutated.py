"""What test_fuzz.py does for minutes, for a moment: files made wrong in any way."""

import pytest

import mutations


@pytest.mark.parametrize("data", mutations.seeds(), ids=lambda data: f"{len(data)} bytes")
def test_what_the_mutations_start_from_is_accepted(data):
    assert mutations.check(data)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_made_of_a_file_it_is_refused_or_holds_what_it_says(seed):
    accepted = [mutations.check(data) for data in mutations.some(500, seed)]

    assert 5 < sum(accepted) < 300
