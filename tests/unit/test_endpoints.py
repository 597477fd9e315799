"""Every spelling of an address, and what the errors say of the wrong ones."""

import re

import pytest

from fastmilter.endpoints import MAX_UNIX_PATH_BYTES, Endpoint, EndpointKind, parse_endpoint
from fastmilter.errors import ConfigError

INET, INET6, UNIX, FD = EndpointKind


@pytest.mark.parametrize(
    ("text", "expected", "canonical"),
    [
        ("inet:8894@127.0.0.1", Endpoint(INET, "127.0.0.1", 8894), "inet:8894@127.0.0.1"),
        ("inet:127.0.0.1:8894", Endpoint(INET, "127.0.0.1", 8894), "inet:8894@127.0.0.1"),
        ("INET:8894@localhost", Endpoint(INET, "localhost", 8894), "inet:8894@localhost"),
        ("inet:mx-1.example.org.:8894", Endpoint(INET, "mx-1.example.org.", 8894), "inet:8894@mx-1.example.org."),
        ("inet:[127.0.0.1]:8894", Endpoint(INET, "127.0.0.1", 8894), "inet:8894@127.0.0.1"),
        ("inet:milter@localhost", Endpoint(INET, "localhost", "milter"), "inet:milter@localhost"),
        ("inet:localhost:milter-x", Endpoint(INET, "localhost", "milter-x"), "inet:milter-x@localhost"),
        ("inet:8894", Endpoint(INET, None, 8894), "inet:8894"),
        ("inet:0@127.0.0.1", Endpoint(INET, "127.0.0.1", 0), "inet:0@127.0.0.1"),
        ("inet6:8894", Endpoint(INET6, None, 8894), "inet6:8894"),
        ("inet6:8894@::1", Endpoint(INET6, "::1", 8894), "inet6:8894@[::1]"),
        ("inet6:8894@[::1]", Endpoint(INET6, "::1", 8894), "inet6:8894@[::1]"),
        ("inet6:65535@mx.example", Endpoint(INET6, "mx.example", 65535), "inet6:65535@mx.example"),
        ("inet:[::1]:8894", Endpoint(INET6, "::1", 8894), "inet6:8894@[::1]"),
        ("inet:8894@[fe80::1%eth0]", Endpoint(INET6, "fe80::1%eth0", 8894), "inet6:8894@[fe80::1%eth0]"),
        ("unix:/run/m.sock", Endpoint(UNIX, path="/run/m.sock"), "unix:/run/m.sock"),
        ("local:/run/m.sock", Endpoint(UNIX, path="/run/m.sock"), "unix:/run/m.sock"),
        ("/run/m.sock", Endpoint(UNIX, path="/run/m.sock"), "unix:/run/m.sock"),
        ("./m.sock", Endpoint(UNIX, path="./m.sock"), "unix:./m.sock"),
        ("unix:run/m.sock", Endpoint(UNIX, path="run/m.sock"), "unix:run/m.sock"),
        ("unix:/run/a:b@c", Endpoint(UNIX, path="/run/a:b@c"), "unix:/run/a:b@c"),
        (
            "unix:/run/m.sock?mode=0660&group=postfix",
            Endpoint(UNIX, path="/run/m.sock", mode=0o660, group="postfix"),
            "unix:/run/m.sock?mode=0660&group=postfix",
        ),
        ("/m?mode=600", Endpoint(UNIX, path="/m", mode=0o600), "unix:/m?mode=0600"),
        (
            "/m?group=mail&owner=filter",
            Endpoint(UNIX, path="/m", owner="filter", group="mail"),
            "unix:/m?owner=filter&group=mail",
        ),
        ("unix:@m", Endpoint(UNIX, path="@m"), "unix:@m"),
        ("/m?group=mail", Endpoint(UNIX, path="/m", group="mail"), "unix:/m?group=mail"),
        ("fd:3", Endpoint(FD, fd=3), "fd:3"),
        ("fd:3?proxy=yes", Endpoint(FD, fd=3, proxy=True), "fd:3?proxy=yes"),
        ("inet:8894?proxy=yes", Endpoint(INET, None, 8894, proxy=True), "inet:8894?proxy=yes"),
        ("inet:[::1]:8894?proxy=yes", Endpoint(INET6, "::1", 8894, proxy=True), "inet6:8894@[::1]?proxy=yes"),
        ("inet:8894@::1?proxy=no", Endpoint(INET6, "::1", 8894), "inet6:8894@[::1]"),
    ],
)
def test_spellings(text: str, expected: Endpoint, canonical: str) -> None:
    endpoint = parse_endpoint(text)
    assert endpoint == expected
    assert str(endpoint) == canonical
    assert parse_endpoint(canonical) == endpoint


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        ("", "is not one of inet:PORT@HOST"),
        ("8894", "is not one of"),
        ("127.0.0.1:8894", "is not one of"),
        ("tcp:8894@127.0.0.1", "is not one of"),
        ("inet:8894@host\n", "is not one of"),
        ("inet:", "'' is no port; it must look like 'inet:8894@127.0.0.1'"),
        ("inet:@127.0.0.1", "'' is no port"),
        ("inet:127.0.0.1:", "'' is no port"),
        ("inet:8894@", "'' is no host name"),
        ("inet:65536@127.0.0.1", "port 65536 is not between 0 and 65535"),
        ("inet:99999999999999999999@127.0.0.1", "is not between 0 and 65535"),
        ("inet:-1@127.0.0.1", "'-1' is no port"),
        ("inet:٣@127.0.0.1", "is no port"),
        ("inet:8894@a b", "'a b' is no host name"),
        ("inet:8894@-a", "is no host name"),
        ("inet:8894@1.2.3.256", "'1.2.3.256' is no IP address"),
        ("inet:8894@[mx.example]", "'mx.example' is no IP address"),
        ("inet:::1:8894", "an IPv6 address needs brackets, as in 'inet:[::1]:8894'"),
        ("inet6:8894@::g", "'::g' is no IPv6 address; it must look like 'inet6:8894@::1'"),
        ("inet6:8894@127.0.0.1", "127.0.0.1 is no IPv6 address"),
        ("inet:8894@127.0.0.1?mode=0660", "mode, owner and group belong to a unix path"),
        ("fd:3?mode=0660", "mode, owner and group belong to a unix path"),
        ("inet:8894?proxy", "'proxy' must be 'proxy=yes'"),
        ("inet:8894?proxy=yes&proxy=yes", "'proxy=yes&proxy=yes' must be 'proxy=yes'"),
        ("/m?proxy=yes", "'proxy=yes' must be 'mode=0660'"),
        ("unix:", "names no socket"),
        ("/run/", "names no socket"),
        ("/m?", "'' must be 'mode=0660', 'owner=NAME' or 'group=NAME'"),
        ("/m?mode=0999", "'mode=0999' must be"),
        ("/m?mode=4777", "'mode=4777' must be"),
        ("/m?mode=0660&mode=0600", "at most once"),
        ("/m?owner=", "'owner=' must be"),
        ("/m?owner=a&owner=b", "at most once"),
        ("unix:@", "an abstract socket has a name and no permissions: 'unix:@milter'"),
        ("unix:@m?mode=0600", "an abstract socket has a name and no permissions"),
        ("/m?group=", "'group=' must be"),
        ("fd:", "must look like 'fd:3'"),
        ("fd:-1", "must look like 'fd:3'"),
        ("fd:3x", "must look like 'fd:3'"),
    ],
)
def test_errors_name_the_address_and_the_right_form(text: str, saying: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(saying)) as caught:
        parse_endpoint(text)
    assert repr(text) in str(caught.value)


def test_the_longest_path_of_a_unix_socket_counts_bytes() -> None:
    longest = "/" + "é" * ((MAX_UNIX_PATH_BYTES - 1) // 2)
    assert parse_endpoint(longest).path == longest
    with pytest.raises(ConfigError, match="at most 107 bytes"):
        parse_endpoint(longest + "é")
