"""Conformance cases of modifications and reply texts, by their numbers (see README.md)."""

from collections.abc import Callable
from typing import Any

import pytest

from fastmilter import DISCARD, REJECT, TEMPFAIL, Action, Message, NoMessage, NotNegotiated, codec, reply
from tests.support.playing import (
    BODY,
    CONNECT,
    DATA,
    EOH,
    EOM,
    HEADER,
    HELO,
    MAIL,
    NO_BITS,
    POSTFIX,
    RCPT,
    V2,
    Mta,
    letters,
    made,
)

Ask = Callable[[Message[Any]], None]
X = codec.Header(b"X", b"1")


def edited(*asks: Ask, shown: tuple[codec.Header, ...] = (), **settings: Any) -> list[codec.Response]:
    """What leaves at the end of a message for which a filter asked for edits, without the verdict."""

    def on_end_of_message(self: Any) -> None:
        for ask in asks:
            ask(self.message)

    mta = Mta(made(on_header=None, on_end_of_message=on_end_of_message, **settings))
    mta.send(POSTFIX, CONNECT, HELO, MAIL, RCPT, *shown)
    *edits, verdict = mta.send(EOM)
    assert mta.failures == []
    assert verdict == codec.Continue()
    return edits


def packets(*asks: Ask) -> list[bytes]:
    """The same as bytes without their lengths."""
    return [codec.encode(edit)[4:] for edit in edited(*asks)]


def test_case_92_a_modification_before_the_end() -> None:
    def add(self: Any, *arguments: Any) -> None:
        self.message.add_header("X", str(len(self.message._edits)))

    steps = ["on_mail", "on_rcpt", "on_data", "on_header", "on_end_of_headers", "on_body"]
    mta = Mta(made(**dict.fromkeys(steps, add)), NO_BITS)
    assert mta.each(MAIL, RCPT, DATA, HEADER, EOH, BODY) == ["c"] * 6
    assert letters(mta.send(EOM)) == "hhhhhhc"
    early = Mta(made(on_helo=add))
    early.send(HELO)
    assert isinstance(early.failures[0][1], NoMessage)


@pytest.mark.parametrize("narrow", ["by the class", "by the MTA"])
def test_case_93_a_modification_that_was_not_negotiated(narrow: str) -> None:
    def change(self: Any) -> None:
        self.message.change_sender("a@b")

    settings: dict[str, Any] = {"actions": Action.ADD_HEADERS} if narrow == "by the class" else {}
    mta = Mta(made(on_end_of_message=change, **settings), NO_BITS if settings else V2)
    mta.send(MAIL, RCPT)
    assert letters(mta.send(EOM)) == "t"
    assert isinstance(mta.failures[0][1], NotNegotiated)


@pytest.mark.parametrize("verdict", [REJECT, TEMPFAIL, DISCARD, reply(550, None, "no")], ids=str)
def test_case_94_modifications_of_a_refused_message(verdict: Any) -> None:
    def refuse(self: Any) -> Any:
        self.message.add_header("X", "1")
        self.message.replace_body([b"new"])
        return verdict

    mta = Mta(made(on_end_of_message=refuse))
    mta.send(MAIL, RCPT)
    assert b"".join(codec.encode(answer) for answer in mta.send(EOM)) == verdict.packet


def test_case_95_the_next_message_begins_without_modifications() -> None:
    def once(self: Any) -> None:
        if self.message.sender == "first":
            self.message.add_header("X", "1")

    mta = Mta(made(on_end_of_message=once))
    for ending in (EOM, codec.Abort()):
        mta.send(codec.MailFrom(b"<first>"), RCPT, ending)
        assert letters(mta.send(MAIL, RCPT, EOM)) == "cc"


def test_case_96_percent_in_a_reply() -> None:
    assert reply(550, "5.7.1", "100% of %s").packet[4:] == b"y550 5.7.1 100%% of %%s\0"


def test_case_97_codes_that_do_not_fit() -> None:
    wrong: list[tuple[int, str | None]] = [(550, "4.7.1"), (450, "5.7.1"), (250, None), (354, None), (550, "2.0.0")]
    for code, enhanced in wrong:
        with pytest.raises(ValueError, match="code"):
            reply(code, enhanced, "no")


def test_case_98_lines_of_a_reply() -> None:
    verdict = reply(550, "5.7.1", "l1\nl2\nl3")
    assert verdict.packet[4:] == b"y550-5.7.1 l1\r\n550-5.7.1 l2\r\n550 5.7.1 l3\0"
    with pytest.raises(ValueError, match="at most 32"):
        reply(550, "5.7.1", "\n".join("x" * 33))
    assert max(map(len, reply(550, "5.7.1", "x" * 3000).packet[5:-1].split(b"\r\n"))) <= 980


@pytest.mark.parametrize("bad", ["\r", "\n", "\0"])
def test_case_99_line_ends_and_nul(bad: str) -> None:
    """In a reply CR and NUL become "?" and LF begins a line, so that text of a client cannot fail it (design 3.1)."""
    text = reply(550, None, f"a{bad}b").packet[5:-1]
    assert text in (b"550 a?b", b"550-a\r\n550 b")
    asks: list[Ask] = [
        lambda message: message.quarantine(f"a{bad}b"),
        lambda message: message.add_recipient(f"a{bad}@b"),
        lambda message: message.delete_recipient(f"a@b{bad}"),
        lambda message: message.change_sender(f"{bad}a@b"),
        lambda message: message.add_recipient("a@b", [f"X={bad}"]),
        lambda message: message.add_header(f"X{bad}", "1"),
        lambda message: message.insert_header(f"X{bad}Y", "1"),
        lambda message: message.delete_headers(f"{bad}"),
    ]
    for ask in asks:
        with pytest.raises(AssertionError, match="ValueError"):
            edited(ask)


def test_case_100_folding() -> None:
    assert packets(lambda message: message.add_header("X", "a\r\n b\r\n\tc\r\n")) == [b"hX\0a\n b\n\tc\0"]
    for value in ("a\nb", "a\r\nb: c", "a\n\nb", "a\rb"):
        with pytest.raises(AssertionError, match="ValueError"):
            edited(lambda message, value=value: message.add_header("X", value))  # type: ignore[misc]


def test_case_101_deleting_all_of_a_name() -> None:
    deleted = [codec.ChangeHeader(index, b"x", b"") for index in (3, 2, 1)]
    shown = (X, HEADER, X, codec.Header(b"x", b"3"))
    assert edited(lambda message: message.delete_headers("x"), shown=shown) == deleted

    def one_by_one(message: Message[Any]) -> None:
        for index in (1, 3, 2):
            message.delete_header("x", index=index)

    assert edited(one_by_one, shown=shown) == deleted


def test_case_102_empty_values() -> None:
    assert packets(lambda message: message.add_header("X", "")) == [b"hX\0\0"]
    deleted = edited(lambda message: message.delete_header("X", index=1), shown=(X,))
    assert codec.encode(deleted[0])[4:] == b"m\0\0\0\1X\0\0"
    with pytest.raises(AssertionError, match="use delete_header"):
        edited(lambda message: message.change_header("X", ""), shown=(X,))


def test_case_103_a_large_body() -> None:
    body = bytes(range(256)) * 800
    edits = edited(
        lambda message: message.quarantine("look"),
        lambda message: message.replace_body(body),
        lambda message: message.add_recipient("a@b"),
    )
    assert letters(edits) == "+bbbbq"
    chunks = [edit.chunk for edit in edits if isinstance(edit, codec.ReplaceBody)]
    assert b"".join(chunks) == body
    assert max(map(len, chunks)) == 65535


def test_case_104_an_empty_body() -> None:
    assert packets(lambda message: message.replace_body(b"")) == [b"b"]
    assert packets(lambda message: message.replace_body(iter([]))) == [b"b"]


def test_case_105_recipients() -> None:
    assert packets(lambda message: message.add_recipient("a@b")) == [b"+<a@b>\0"]
    assert packets(lambda message: message.add_recipient("a@b", ["NOTIFY=NEVER", "ORCPT=rfc822;x"])) == [
        b"2<a@b>\0NOTIFY=NEVER ORCPT=rfc822;x\0"
    ]
    assert packets(lambda message: message.delete_recipient("<a@b>")) == [b"-<a@b>\0"]


def test_case_106_the_null_sender() -> None:
    for address in ("", "<>"):
        assert packets(lambda message, address=address: message.change_sender(address)) == [b"e<>\0"]  # type: ignore[misc]
    assert packets(lambda message: message.change_sender("a@b", ["RET=HDRS"])) == [b"e<a@b>\0RET=HDRS\0"]


def test_case_107_a_quarantine_needs_a_reason() -> None:
    assert packets(lambda message: message.quarantine("spam")) == [b"qspam\0"]
    for reason in ("", " ", "\t"):
        with pytest.raises(AssertionError, match="ValueError"):
            edited(lambda message, reason=reason: message.quarantine(reason))  # type: ignore[misc]
