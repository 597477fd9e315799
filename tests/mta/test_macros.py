"""Macros of real MTAs: by default, by request, and those of the current recipient."""

from __future__ import annotations

from typing import Any

import pytest

from fastmilter.constants import POSTFIX_CONTENT_MACROS, POSTFIX_KNOWN_MACROS, POSTFIX_MACROS
from fastmilter.negotiation import normalise_macro

from .case import Case
from .lab import UNKNOWN_RECIPIENT, Mta
from .lab.served import Stage


@pytest.fixture
def case(filter_class: str, stage: Stage, mta: Mta) -> Case:
    return Case(mta, stage.serve(f"planned.py:{filter_class}"))


def macros_at(case: Case, step: str) -> list[dict[str, Any]]:
    return [
        event["data"][1] for event in case.first_connection() if event["event"] == "macros" and event["data"][0] == step
    ]


@pytest.mark.parametrize("filter_class", ["Default", "Silent", "Mute", "Asking"])
def test_the_current_recipient(case: Case) -> None:
    with case.client() as client:
        client.ehlo()
        for number in (1, 2):
            assert case.send(client, number=number, names=(f"r{number}", f"s{number}", f"t{number}")) == 250
        client.quit()
    case.delivered(2)
    told = [(event["data"][0], event["data"][2]) for event in case.first_connection() if event["event"] == "rcpt"]
    assert told == [(address, address) for address in case.to("r1", "s1", "t1", "r2", "s2", "t2")]


@pytest.mark.parametrize("filter_class", ["Default", "Minimal"])
def test_the_queue_id_is_known_at_the_end(case: Case) -> None:
    with case.client() as client:
        client.ehlo()
        for number in (1, 2):
            assert case.send(client, number=number) == 250
        client.quit()
    case.delivered(2)
    ids = [event["data"][2] for event in case.first_connection() if event["event"] == "end_of_message"]
    assert len(set(ids)) == 2
    assert all(queue_id in case.mta.log() for queue_id in ids)


@pytest.mark.parametrize("filter_class", ["Asking"])
def test_requested_macros_come_with_the_default_ones(case: Case) -> None:
    case.deliver()
    connect, rcpt = macros_at(case, "connect")[0], macros_at(case, "rcpt")[0]
    assert connect["client_addr"] == case.address
    assert connect["j"] == "mx.lab.test"
    assert "daemon_name" in connect
    assert int(rcpt["client_port"]) > 0
    assert rcpt["rcpt_addr"] == f"b@{case.domain}"
    assert rcpt["mail_addr"] == "m1@from.test"
    for step in ("end_of_headers", "end_of_message"):
        (told,) = macros_at(case, step)
        assert told["client_addr"] == case.address
        assert told["i"] in case.mta.log()
    if case.mta.name == "sendmail":
        assert macros_at(case, "end_of_message")[0]["msg_id"] == "<1@from.test>"
    assert case.filter_failed() == []


@pytest.mark.parametrize("filter_class", ["AskingLate"])
def test_the_end_of_a_message_has_not_all_macros_of_its_session(case: Case) -> None:
    """What ``--check-config`` says of macros at the end stands on this."""
    case.deliver()
    told = {normalise_macro(name) for name in macros_at(case, "end_of_message")[0]}
    if case.mta.name == "postfix":
        by_default = {name for names in POSTFIX_MACROS.values() for name in names}
        assert told - by_default == POSTFIX_CONTENT_MACROS - by_default
        assert told <= set(POSTFIX_KNOWN_MACROS)
    assert case.filter_failed() == []


@pytest.mark.parametrize("filter_class", ["Asking"])
def test_recipients_that_the_mta_refuses(case: Case) -> None:
    with case.client() as client:
        client.ehlo()
        client.envelope("m1@from.test", case.to("b"))
        assert client.command(f"RCPT TO:<{UNKNOWN_RECIPIENT}>").code in (550, 554)
        client.expect(250, f"RCPT TO:<{case.to('c')[0]}>")
        assert client.data(b"Subject: x\r\n\r\nbody\r\n").code == 250
        client.quit()
    assert sorted(case.delivered(1)[0].recipients) == case.to("b", "c")
    events = case.first_connection()
    refused = [event["data"] for event in events if event["event"] == "rejected_rcpt"]
    assert [data[0] for data in refused] == [UNKNOWN_RECIPIENT]
    assert "ser unknown" in refused[0][2]
    (end,) = [event["data"][0] for event in events if event["event"] == "end_of_message"]
    assert [address for address, _ in end] == case.to("b", "c")


@pytest.mark.parametrize("filter_class", ["Default", "Silent"])
def test_which_mta_it_is(case: Case) -> None:
    case.deliver()
    (connect,) = [event["data"] for event in case.first_connection() if event["event"] == "connect"]
    hostname, family, host, port, mta = connect
    assert (hostname, family, host, mta) == (f"[{case.address}]", "inet", case.address, case.mta.name)
    assert port > 0
