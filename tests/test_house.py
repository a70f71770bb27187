"""The table of contents: every public name exists, and no other. The layers of imports are contracts in pyproject."""

from pathlib import Path

import pytest

import landscape


def test_every_public_name_can_be_imported():
    for name in landscape.__all__:
        assert getattr(landscape, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = landscape.nothing


def test_a_completion_of_names_shows_the_public_ones_only():
    assert set(dir(landscape)) == set(landscape.__all__)


def test_the_package_says_that_it_has_types():
    assert (Path(landscape.__file__).parent / "py.typed").exists()
