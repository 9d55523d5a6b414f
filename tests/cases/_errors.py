"""What every error says."""

import re

import pytest

_VERBS = (
    "see use choose give pass add insert wrap drop compare convert write combine sort make build replace set "
    "multiply lower raise exchange"
)
# Words that may be said of anything: only where they begin what is to be done.
_FIRST = "cast change compute leave map pad project take transpose"
_REMEDY = rf"(?i)\b({'|'.join(_VERBS.split())}|instead|for example)\b|[:;.] ({'|'.join(_FIRST.split())})\b"


def refuse(call, *words, error=(ValueError, TypeError)):
    """The call raises: the message holds these words, and says what to do."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    assert re.search(_REMEDY, message), f"no remedy in: {message}"
