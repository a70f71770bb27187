"""A bounded run of the fuzzer: the same inputs each time, at least one of every command and kind of damage.

`python tests/fuzz.py` runs thousands of others by hand.
"""

import pytest
from fuzz import KINDS, Case, Fuzzer, files_no_longer_than, kill_at_random_moments, unwritable_outputs
from hypothesis import Phase, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    started = Fuzzer(tmp_path_factory.mktemp("work"))
    yield started
    started.close()


def refute(fuzzer, case):
    """A case that fails is run again by `python tests/fuzz.py --case` and its name."""
    result = fuzzer.run(case)
    assert not result["found"], f"{case}: {result['arguments']}: {result['found']}"


@pytest.mark.slow
@pytest.mark.parametrize(("command", "target"), KINDS, ids=lambda part: part)
def test_every_command_takes_every_kind_of_damage(fuzzer, command, target):
    refute(fuzzer, Case(command, target, 1))


@pytest.mark.slow
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
def test_no_input_ends_in_anything_but_a_right_number_or_a_sentence(fuzzer, kind, seed):
    refute(fuzzer, Case(*kind, seed))


@pytest.mark.slow
def test_outputs_that_cannot_be_written_are_said_in_a_sentence(fuzzer):
    assert unwritable_outputs(fuzzer.workplace, "merge") == []
    assert unwritable_outputs(fuzzer.workplace, "sharpness") == []
    assert files_no_longer_than(fuzzer.workplace, "merge", 2000) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["merge", "forgetting"])
def test_a_command_that_is_killed_at_random_moments_ends_with_the_same_files(fuzzer, command):
    """Those of plot, hessian and measure are killed at chosen stages in tests/results/test_journal.py."""
    kills, found = kill_at_random_moments(fuzzer.workplace, command, 3)
    assert kills >= 3
    assert found == []
