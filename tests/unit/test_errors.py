"""Who did wrong stands in the type."""

import pytest

from fastmilter import errors

LOCAL = [errors.InvalidMessage, errors.NotNegotiated, errors.MessageEnded, errors.NoMessage, errors.NoConnection]


@pytest.mark.parametrize("error", LOCAL)
def test_local_errors(error: type[Exception]) -> None:
    assert issubclass(error, errors.LocalProtocolError)
    assert not issubclass(error, errors.RemoteProtocolError)


@pytest.mark.parametrize("error", [errors.LocalProtocolError, errors.RemoteProtocolError, errors.ConfigError])
def test_one_root(error: type[Exception]) -> None:
    assert error.__mro__[1] is errors.FastmilterError


def test_what_cannot_be_sent_is_a_value_error_too() -> None:
    assert issubclass(errors.InvalidMessage, ValueError)
