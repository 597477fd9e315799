"""The two MTAs' habits: what they offer, which macros they tell, how they spell things."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from fastmilter import codec
from fastmilter.addresses import SocketAddress
from fastmilter.client_session import ClientSession, agree
from fastmilter.codec import encode
from fastmilter.constants import ProtocolFlag, Step
from fastmilter.errors import ConfigError, InvalidMessage, LocalProtocolError, RemoteProtocolError
from fastmilter.mta import POSTFIX, SENDMAIL, MacroBook, Mta, connect_message
from tests.support.mta_side import LOCALHOST, Macros, answer, letters, sent, session, up_to

# -- negotiation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mta", ["postfix", "sendmail"])
def test_the_offer_is_that_of_both_mtas(mta: str) -> None:
    made = ClientSession(mta=mta)
    made.negotiate()
    assert made.take_output() == bytes.fromhex("0000000d 4f 00000006 000001ff 001fffff")
    assert made.take_agreement() is None
    with pytest.raises(LocalProtocolError, match="no MTA sends connect now: the connection is not negotiated"):
        made.connect(LOCALHOST)


def test_an_older_version_offers_its_own_bits() -> None:
    assert ClientSession(version=2).offer == codec.Negotiate(2, 0x1FF, 0x7F)
    assert ClientSession(version=4, actions=0x3F).offer == codec.Negotiate(4, 0x3F, 0x37F)
    assert ClientSession(protocol=0).offer.protocol == 0


OFFER = codec.Negotiate(6, 0x3F, 0x1FFFFF)


@pytest.mark.parametrize("mta", [POSTFIX, SENDMAIL])
def test_case_29_answers_that_no_mta_takes(mta: Mta) -> None:
    with pytest.raises(RemoteProtocolError, match=r"version 7; [02] to 6 is possible"):
        agree(OFFER, codec.Negotiate(7, 0, 0), mta)
    with pytest.raises(RemoteProtocolError, match="actions that were not offered: 0x40"):
        agree(OFFER, codec.Negotiate(6, 0x41, 0), mta)


def test_what_only_sendmail_refuses() -> None:
    for answered in (codec.Negotiate(6, 0, 0x20000000), codec.Negotiate(1, 0, 0)):
        with pytest.raises(RemoteProtocolError):
            agree(OFFER, answered, SENDMAIL)
        agree(OFFER, answered, POSTFIX)
    assert agree(OFFER, codec.Negotiate(6, 0, 0x20000000), POSTFIX).max_data == 65535


def test_case_29_an_older_answer_is_adapted_to() -> None:
    assert agree(OFFER, codec.Negotiate(2, 0, 0), POSTFIX).suppressed == {Step.UNKNOWN, Step.DATA}
    assert agree(OFFER, codec.Negotiate(3, 0, 0), POSTFIX).suppressed == {Step.DATA}
    assert agree(OFFER, codec.Negotiate(4, 0, 0), POSTFIX).suppressed == frozenset()


def test_every_bit_of_the_answer_counts() -> None:
    no = agree(OFFER, codec.Negotiate(6, 0, 0x37F), POSTFIX)
    assert no.suppressed == set(Step) - {Step.END_OF_MESSAGE}
    assert no.unanswered == frozenset()
    nr = agree(OFFER, codec.Negotiate(6, 0, 0x0FF080), POSTFIX)
    assert nr.unanswered == set(Step) - {Step.END_OF_MESSAGE}
    assert nr.suppressed == frozenset()
    both = agree(OFFER, codec.Negotiate(6, 0, 0x100800), POSTFIX)
    assert (both.leading_space, both.rejected_recipients) == (True, True)


def test_case_30_macro_lists_are_read_without_their_action_too() -> None:
    lists = ((0, b"j {client_port}"), (2, b"i,{mail_addr}"), (5, b""), (9, b"x"), (0, b"_"))
    assert agree(OFFER, codec.Negotiate(6, 0, 0, lists), POSTFIX).macros == {
        Step.CONNECT: ("_",),
        Step.MAIL: ("i", "{mail_addr}"),
        Step.END_OF_MESSAGE: (),
    }


def test_case_31_a_garbage_tail_of_the_answer_does_no_harm() -> None:
    """It is agreed upon, or a named error."""
    for tail in (b"\0", b"\0\0\0", b"\0\0\0\0", b"\0\0\0\0abc", b"\xff" * 9):
        made = ClientSession()
        made.negotiate()
        payload = b"O" + bytes(12) + tail
        try:
            made.feed(len(payload).to_bytes(4, "big") + payload)
            assert made.take_agreement() is not None
        except RemoteProtocolError:
            pass


def test_another_message_than_the_answer() -> None:
    made = ClientSession()
    made.negotiate()
    made.feed(encode(codec.Continue()))
    with pytest.raises(RemoteProtocolError, match="answers Continue to the option negotiation"):
        made.take_agreement()
    with pytest.raises(LocalProtocolError, match="already negotiated"):
        session().negotiate()


def test_unknown_mta() -> None:
    with pytest.raises(ConfigError):
        ClientSession(mta="qmail")


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_connect_as_postfix_says_it() -> None:
    made = session(replace(POSTFIX, values={**POSTFIX.values, "j": "mx.lab.test", "{daemon_name}": "mx.lab.test"}))
    assert made.connect(codec.Connect(b"localhost", b"4", 58850, b"127.0.0.1"))
    recorded = (
        "0000006b 44 43 6a00 6d782e6c61622e7465737400 7b6461656d6f6e5f6e616d657d00 6d782e6c61622e7465737400"
        "7b6461656d6f6e5f616464727d00 3132372e302e302e3100 7600 506f737466697820332e372e313100"
        "5f00 6c6f63616c686f7374205b3132372e302e302e315d00"
        "00000018 43 6c6f63616c686f737400 34 e5e2 3132372e302e302e3100"
    )
    assert made.take_output() == bytes.fromhex(recorded)


def test_macros_of_postfix() -> None:
    """The recorded sets: the queue id from the second recipient on, a MACRO before every packet."""
    made = session("postfix")
    plays: Sequence[tuple[Callable[[], bool], dict[bytes, bytes]]] = [
        (lambda: made.helo("c"), {}),
        (
            lambda: made.mail(b"<a@from.test>"),
            {b"{mail_addr}": b"a@from.test", b"{mail_host}": b"from.test", b"{mail_mailer}": b"smtp"},
        ),
        (
            lambda: made.rcpt(b"<b@rcpt.test>"),
            {b"{rcpt_addr}": b"b@rcpt.test", b"{rcpt_host}": b"rcpt.test", b"{rcpt_mailer}": b"smtp"},
        ),
        (
            lambda: made.rcpt(b"c@rcpt.test"),
            {
                b"i": b"FA570000001",
                b"{rcpt_addr}": b"c@rcpt.test",
                b"{rcpt_host}": b"rcpt.test",
                b"{rcpt_mailer}": b"smtp",
            },
        ),
        (made.data, {b"i": b"FA570000001"}),
        (lambda: made.header("A", " b"), {b"i": b"FA570000001"}),
        (made.end_of_headers, {b"i": b"FA570000001"}),
        (lambda: made.body(b"x"), {b"i": b"FA570000001"}),
        (made.end_of_message, {b"i": b"FA570000001"}),
    ]
    answer(made, made.connect(LOCALHOST))
    made.take_output()
    for play, expected in plays:
        answer(made, play())
        macros, command, *_ = sent(made)
        assert isinstance(macros, codec.Macros)
        assert dict(macros.values) == expected
        assert macros.command == encode(command)[4:5]
    answer(made, made.unknown("FOO"))
    assert sent(made) == [codec.Macros(b"U"), codec.Unknown(b"FOO")]


def test_macros_of_sendmail() -> None:
    made = session("sendmail")
    answer(made, made.connect(LOCALHOST))
    assert letters(made) == "DC"
    answer(made, made.helo("c"))
    assert letters(made) == "DH"
    answer(made, made.mail(b"<a@from.test>"))
    macros = sent(made)[0]
    assert isinstance(macros, codec.Macros)
    assert dict(macros.values)[b"i"] == b"FA570000001"
    answer(made, made.rcpt(b"<b@rcpt.test>"))
    assert letters(made) == "DR"
    answer(made, made.data())
    answer(made, made.header("Message-ID", " <1@x>"))
    answer(made, made.end_of_headers())
    answer(made, made.body(b"x"))
    assert letters(made) == "TLNB"
    answer(made, made.end_of_message())
    assert sent(made) == [codec.Macros(b"E", ((b"{msg_id}", b"<1@x>"),)), codec.EndOfMessage()]


def test_macros_said_by_the_caller_come_once_on_top() -> None:
    made = session("sendmail")
    made.macros("connect", {"{if_addr}": "192.0.2.1", "x": "1"})
    made.macros(Step.HEADER, {"note": b"\xff"})
    answer(made, made.connect(LOCALHOST))
    macros = sent(made)[0]
    assert isinstance(macros, codec.Macros)
    assert macros.values[-2:] == ((b"{if_addr}", b"192.0.2.1"), (b"x", b"1"))
    answer(made, made.mail(b"<a@b>"))
    answer(made, made.rcpt(b"<a@b>"))
    made.take_output()
    answer(made, made.header("A", "b"))
    answer(made, made.header("A", "b"))
    assert sent(made) == [
        codec.Macros(b"L", ((b"{note}", b"\xff"),)),
        codec.Header(b"A", b"b"),
        codec.Header(b"A", b"b"),
    ]


def test_only_requested_macros_are_sent() -> None:
    made = session("postfix", macros=((0, b"{client_port} j {nonsense}"), (2, b"client_addr")))
    made.macros("connect", {"{if_addr}": "192.0.2.1"})
    answer(made, made.connect(LOCALHOST))
    assert sent(made)[0] == codec.Macros(b"C", ((b"{client_port}", b"25"), (b"j", b"mx.example.org")))
    answer(made, made.mail(b"<a@b>"))
    # Postfix repeats the spelling of the request.
    assert sent(made)[0] == codec.Macros(b"M", ((b"client_addr", b"127.0.0.1"),))
    answer(made, made.rcpt(b"<a@b>"))
    assert dict(getattr(sent(made)[0], "values"))[b"{rcpt_addr}"] == b"a@b"  # noqa: B009 - a field of one class only


def test_values_live_as_long_as_what_they_describe() -> None:
    made = session(
        "postfix", macros=((0, b"{auth_authen}"), (5, b"{auth_authen} {tls_version} {rcpt_addr}"), (6, b"i"))
    )
    made.macros("helo", {"{tls_version}": "TLSv1.3"})
    made.macros("mail", {"{auth_authen}": "user1"})
    up_to(made, Step.END_OF_MESSAGE)
    answer(made, made.end_of_message())
    macros = sent(made)[0]
    assert isinstance(macros, codec.Macros)
    assert macros.values == (
        (b"{auth_authen}", b"user1"),
        (b"{tls_version}", b"TLSv1.3"),
        (b"{rcpt_addr}", b"b@rcpt.test"),
    )
    answer(made, made.mail(b"<a@b>"))
    answer(made, made.rcpt(b"<c@d>"))
    made.take_output()
    answer(made, made.end_of_message())
    macros = sent(made)[0]
    assert isinstance(macros, codec.Macros)
    assert macros.values == ((b"{tls_version}", b"TLSv1.3"), (b"{rcpt_addr}", b"c@d"))


def test_requests_for_the_end_of_the_message_as_each_mta_reads_them() -> None:
    def told(mta: str, macros: Macros) -> tuple[tuple[bytes, bytes], ...] | None:
        made = session(mta, macros=macros)
        up_to(made, Step.END_OF_HEADERS)
        answer(made, made.header("Message-ID", "<1@x>"))
        made.take_output()
        answer(made, made.end_of_message())
        first = sent(made)[0]
        return first.values if isinstance(first, codec.Macros) else None

    queue_id = ((b"i", b"FA570000001"),)
    # Sendmail looks at the list for the end of headers to decide whether that for the end of the message counts.
    assert told("sendmail", ((5, b"i"),)) == ((b"{msg_id}", b"<1@x>"),)
    assert told("sendmail", ((6, b"i"),)) is None
    assert told("sendmail", ((5, b"i"), (6, b"i"))) == queue_id
    assert told("postfix", ((5, b"j"),)) == ((b"j", b"mx.example.org"),)
    assert told("postfix", ((5, b""),)) == queue_id


def test_an_empty_request_on_sendmail_means_no_macros() -> None:
    made = session("sendmail", macros=((0, b""),))
    made.connect(LOCALHOST)
    assert letters(made) == "C"


def test_case_58_header_values() -> None:
    made = session()
    up_to(made, Step.HEADER)
    for value in (" x", "  x", "\tx", "x", "", " a\r\n\tb\r\n c\r\n", " caf\udce9", b" \xff"):
        answer(made, made.header("A", value))
    shown = [command.value for command in sent(made) if isinstance(command, codec.Header)]
    assert shown == [b"x", b" x", b"\tx", b"x", b"", b"a\n\tb\n c", b"caf\xe9", b"\xff"]


def test_case_58_header_values_as_they_are_where_agreed() -> None:
    made = session(protocol=ProtocolFlag.LEADING_SPACE)
    up_to(made, Step.HEADER)
    answer(made, made.header("A", " x"))
    assert sent(made)[1] == codec.Header(b"A", b" x")


def test_case_55_parameters_are_strings_of_their_own() -> None:
    made = session("sendmail")
    up_to(made, Step.MAIL)
    made.macros("mail", {})
    answer(made, made.mail(b"<a@b>", [b"SIZE=1", b"SMTPUTF8"]))
    assert encode(sent(made)[1])[4:] == b"M<a@b>\0SIZE=1\0SMTPUTF8\0"


def test_case_56_57_bodies_are_cut_at_65535_and_never_empty() -> None:
    made = session()
    assert list(made.pieces(b"")) == []
    assert [len(piece) for piece in made.pieces(bytes(131_071))] == [65535, 65535, 1]
    up_to(made, Step.BODY)
    with pytest.raises(InvalidMessage):
        made.body(b"")
    with pytest.raises(InvalidMessage):
        made.body(bytes(65536))
    answer(made, made.body(bytes(65535)))
    answer(made, made.end_of_message())
    assert sent(made)[-2] == codec.EndOfMessage()


def test_larger_pieces_where_the_size_was_offered_and_agreed() -> None:
    for flag, size in ((ProtocolFlag.MDS_256K, 262143), (ProtocolFlag.MDS_1M, 1048575)):
        made = session("sendmail", flag, offer=0x1FFFFF | flag)
        assert [len(piece) for piece in made.pieces(bytes(size + 1))] == [size, 1]
        up_to(made, Step.BODY)
        answer(made, made.body(bytes(size)))
        assert len(made.take_output()) == size + 5


@pytest.mark.parametrize(
    ("mta", "address", "expected"),
    [
        ("postfix", "192.0.2.1", codec.Connect(b"h", b"4", 25, b"192.0.2.1")),
        ("postfix", "::1", codec.Connect(b"h", b"6", 25, b"::1")),
        ("postfix", "IPv6:::1", codec.Connect(b"h", b"6", 25, b"::1")),
        ("sendmail", "::1", codec.Connect(b"h", b"6", 25, b"IPv6:0:0:0:0:0:0:0:1")),
        ("sendmail", "2001:db8::10", codec.Connect(b"h", b"6", 25, b"IPv6:2001:db8:0:0:0:0:0:10")),
        ("sendmail", "::ffff:192.0.2.1", codec.Connect(b"h", b"4", 25, b"192.0.2.1")),
        ("postfix", "unknown", codec.Connect(b"h", b"4", 25, b"unknown")),
        ("postfix", "/run/s", codec.Connect(b"h", b"L", 0, b"/run/s")),
        ("postfix", None, codec.Connect(b"h", b"U")),
        ("postfix", SocketAddress("inet", "192.0.2.1", 26), codec.Connect(b"h", b"4", 26, b"192.0.2.1")),
        ("postfix", SocketAddress("unix", path="/s"), codec.Connect(b"h", b"L", 0, b"/s")),
        ("postfix", SocketAddress(), codec.Connect(b"h", b"U")),
    ],
)
def test_addresses_of_clients(mta: str, address: str | SocketAddress | None, expected: codec.Connect) -> None:
    table = POSTFIX if mta == "postfix" else SENDMAIL
    assert connect_message("h", address, 25, table) == expected


def test_an_address_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"192\.0\.2\.256"):
        connect_message("h", "192.0.2.256", 25, POSTFIX)


def test_unknown_commands_as_each_mta_tells_them() -> None:
    for mta, text in (("postfix", b"FOO"), ("sendmail", b"FOO bar")):
        made = session(mta)
        up_to(made, Step.MAIL)
        answer(made, made.unknown("FOO bar"))
        assert sent(made)[-1] == codec.Unknown(text)


def test_empty_values_are_told_where_they_are_known() -> None:
    book = MacroBook(POSTFIX)
    book.connect(b"h", b"192.0.2.1", 0)
    book.mail(b"<>")
    packet = book.packet(Step.MAIL, {Step.MAIL: ("{mail_addr}", "{client_port}", "{auth_authen}")})
    assert packet == codec.Macros(b"M", ((b"{mail_addr}", b""), (b"{client_port}", b"0")))
    book.say(Step.RCPT, {"{x1}": ""})
    packet = book.packet(Step.RCPT, {Step.RCPT: ("{x1}",)})
    assert packet == codec.Macros(b"R", ((b"{x1}", b""),))


def test_a_source_route_is_no_part_of_the_address_in_macros() -> None:
    book = MacroBook(SENDMAIL)
    book.mail(b"<@r1.test,@r2.test:a@from.test>")
    assert book.message["{mail_addr}"] == b"a@from.test"


def test_sendmail_makes_a_message_id_where_there_is_none() -> None:
    made = session("sendmail")
    up_to(made, Step.END_OF_MESSAGE)
    made.end_of_message()
    assert sent(made)[0] == codec.Macros(b"E", ((b"{msg_id}", b"<FA570000001@mx.example.org>"),))
