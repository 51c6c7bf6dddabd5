"""What the tests of the figures share."""

import pytest


@pytest.fixture
def legend():
    """The texts of a legend."""
    return lambda owner: [text.get_text() for text in owner.get_texts()]
