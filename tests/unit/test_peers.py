"""Rules about who may connect, and numbers of connections by peer."""

import ipaddress
import random
from collections import Counter

import pytest

from fastmilter.errors import ConfigError
from fastmilter.server.peer_counts import PEERS, PeerCounts
from fastmilter.server.peers import Rules, address_of, open_door, parse_networks, parse_users
from fastmilter.server.settings import load_settings
from fastmilter.server.slots import Slots


@pytest.mark.parametrize(
    ("networks", "allowed", "refused"),
    [
        (["192.0.2.0/28"], ["192.0.2.0", "192.0.2.15", "::ffff:192.0.2.3"], ["192.0.2.16", "::1", "2001:db8::1"]),
        (["192.0.2.1"], ["192.0.2.1"], ["192.0.2.2", "0.0.0.0"]),
        (["2001:db8::/32", "::1"], ["2001:db8:1::5", "::1"], ["2001:db9::", "::2", "192.0.2.1"]),
        (["::ffff:192.0.2.0/120"], ["192.0.2.3", "::ffff:192.0.2.3"], ["192.0.3.1", "::1"]),
        (["::/0"], ["2001:db8::1"], ["192.0.2.1"]),
        (["fe80::/10"], ["fe80::1%eth0"], ["fec0::1%eth0"]),
        (["0.0.0.0/0"], ["203.0.113.9", "::ffff:203.0.113.9"], ["2001:db8::1"]),
        ([], ["203.0.113.9", "2001:db8::1"], []),
    ],
)
def test_networks(networks: list[str], allowed: list[str], refused: list[str]) -> None:
    rules = Rules(parse_networks(networks), ())
    assert all(map(rules.allow_address, allowed))
    assert not any(map(rules.allow_address, refused))


def test_users() -> None:
    rules = Rules((), parse_users(["root", 1000, "1001"]))
    assert [rules.allow_user(uid) for uid in (0, 1000, 1001, 1002, 0xFFFFFFFF)] == [True, True, True, False, False]
    assert Rules((), ()).allow_user(4711)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("192.0.2.1/24", "'192.0.2.1/24' is an address within a network: write 192.0.2.0/24 or 192.0.2.1"),
        ("mail.example", "'mail.example' is no address or network: write 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32"),
        ("192.0.2.0/33", "is no address or network"),
        ("fe80::1%eth0", "'fe80::1%eth0' has a zone, and those of peers do not count: write fe80::1"),
        ("fe80::%eth0/64", "'fe80::%eth0/64' has a zone, and those of peers do not count: write fe80::/64"),
        ("fe80::1/64", "'fe80::1/64' is an address within a network: write fe80::/64 or fe80::1"),
        ("", "is no address or network"),
        ([True], "write an address or a network, or a list of them"),
        (3.5, "write an address or a network, or a list of them"),
    ],
)
def test_networks_that_will_not_do(value: object, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_networks(value)
    assert error in str(caught.value)


@pytest.mark.parametrize(
    ("value", "error"),
    [("no-such-user", "there is no user 'no-such-user' on this machine"), (True, "True will not do"), ("-1", "'-1'")],
)
def test_users_that_will_not_do(value: object, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_users(value)
    assert error in str(caught.value)


def test_without_rules_there_is_no_door() -> None:
    slots = Slots(1)
    target = {"target": "tagger:Tagger"}
    assert open_door(load_settings(target, {}), slots, 0, []) is None
    for name, value in (("allow", ["::1"]), ("allow_user", ["root"]), ("max_connections_per_peer", "1")):
        assert open_door(load_settings({**target, name: value}, {}), slots, 0, []) is not None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"listen": "inet:1?proxy=yes"}, "inet:1?proxy=yes: name the proxies with --proxy-from NETWORK"),
        ({"listen": "inet:1", "proxy_from": "192.0.2.1"}, "--proxy-from: no address has ?proxy=yes"),
        ({"listen": "inet:1?proxy=yes", "proxy_from": "192.0.2.1/24"}, "is an address within a network"),
    ],
)
def test_half_a_proxy_is_refused(options: dict[str, object], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({"target": "tagger:Tagger", **options}, {})
    assert error in str(caught.value)


def test_peers_are_counted_over_all_workers() -> None:
    """Against a plain counter: peers come and go in random order, more than there are entries."""
    chosen = random.Random(7)
    counts, expected = PeerCounts(4), Counter[tuple[int, object]]()
    addresses = [ipaddress.ip_address(f"192.0.{number // 256}.{number % 256}") for number in range(2 * PEERS)]
    addresses += [ipaddress.ip_address(f"2001:db8::{number:x}") for number in range(20)]
    for _ in range(20_000):
        slot, address = chosen.randrange(4), chosen.choice(addresses)
        if expected[slot, address]:
            expected[slot, address] -= 1
            counts.add(slot, address, -1)
        elif sum(1 for (of, _), number in expected.items() if of == slot and number) < PEERS // 2:
            expected[slot, address] += 1
            counts.add(slot, address, 1)
    for address in addresses:
        assert counts.total(address, range(4)) == sum(expected[slot, address] for slot in range(4))
    counts.clear(2)
    assert counts.total(addresses[0], [2]) == 0


def test_more_peers_than_entries_do_no_harm() -> None:
    counts = PeerCounts(1)
    addresses = [ipaddress.ip_address(number) for number in range(PEERS + 10)]
    for address in addresses:
        counts.add(0, address, 1)
    assert sum(counts.total(address, [0]) for address in addresses) == PEERS
    for address in addresses:
        counts.add(0, address, -1)
    assert not any(counts.total(address, [0]) for address in addresses)


def test_addresses_as_the_kernel_gives_them() -> None:
    assert str(address_of("::ffff:192.0.2.1")) == "192.0.2.1"
    assert str(address_of("fe80::1%eth0")) == "fe80::1"
