"""What every error says."""

import re

import pytest

_VERBS = (
    "see use choose give pass add insert wrap drop compare convert cast write combine sort make build replace set "
    "multiply lower raise exchange leave take pad map project transpose change compute shorten"
)
_REMEDY = rf"(?i)\b({'|'.join(_VERBS.split())}|instead|for example)\b"


def refuse(call, *words, error=(ValueError, TypeError)):
    """The call raises: the message holds these words, and says what to do."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    assert re.search(_REMEDY, message), f"no remedy in: {message}"
