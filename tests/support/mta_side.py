"""A negotiated ``ClientSession`` and short ways to play it, for the tests of the MTA's side."""

from collections.abc import Callable

from fastmilter import codec
from fastmilter.client_session import ClientSession
from fastmilter.codec import CommandDecoder, encode
from fastmilter.constants import Step
from fastmilter.mta import Mta
from fastmilter.replies import CONTINUE, Verdict

LOCALHOST = codec.Connect(b"localhost", b"4", 25, b"127.0.0.1")
Macros = tuple[tuple[int, bytes], ...]


def session(
    mta: str | Mta = "postfix", protocol: int = 0, macros: Macros = (), *, offer: int | None = None
) -> ClientSession:
    """A negotiated session."""
    made = ClientSession(mta=mta, protocol=offer)
    made.negotiate()
    made.take_output()
    made.feed(encode(codec.Negotiate(6, 0x1FF if macros else 0, protocol, macros)))
    assert made.take_agreement() is not None
    return made


def sent(made: ClientSession) -> list[codec.Command]:
    """What is queued, as messages."""
    decoder = CommandDecoder(1048575)
    decoder.feed(made.take_output())
    commands = list(decoder)
    assert decoder.buffered == 0
    return commands


def letters(made: ClientSession) -> str:
    return "".join(chr(encode(command, 1048575)[4]) for command in sent(made))


def answer(made: ClientSession, due: bool, response: codec.Response | Verdict = CONTINUE) -> Verdict:
    """Give the answer that is due."""
    assert due
    made.feed(response.packet if isinstance(response, Verdict) else encode(response))
    verdict = made.take_answer()
    assert verdict is not None
    return verdict


def up_to(made: ClientSession, step: Step) -> None:
    """Play everything before ``step``, all answered CONTINUE, and forget what went out."""
    plays: list[tuple[Step, Callable[[], bool]]] = [
        (Step.CONNECT, lambda: made.connect(LOCALHOST)),
        (Step.HELO, lambda: made.helo("client.test")),
        (Step.MAIL, lambda: made.mail(b"<a@from.test>")),
        (Step.RCPT, lambda: made.rcpt(b"<b@rcpt.test>")),
        (Step.DATA, made.data),
        (Step.HEADER, lambda: made.header("Subject", " hi")),
        (Step.END_OF_HEADERS, made.end_of_headers),
        (Step.BODY, lambda: made.body(b"body\r\n")),
        (Step.END_OF_MESSAGE, made.end_of_message),
    ]
    for at, play in plays:
        if at is step:
            break
        if play():
            answer(made, True)
    made.take_output()


def ask(made: ClientSession, step: Step) -> bool:
    """Queue ``step`` with some argument."""
    calls: dict[Step, Callable[[], bool]] = {
        Step.CONNECT: lambda: made.connect(LOCALHOST),
        Step.HELO: lambda: made.helo("client.test"),
        Step.MAIL: lambda: made.mail(b"<a@from.test>"),
        Step.RCPT: lambda: made.rcpt(b"<b@rcpt.test>"),
        Step.DATA: made.data,
        Step.HEADER: lambda: made.header("To", " b"),
        Step.END_OF_HEADERS: made.end_of_headers,
        Step.BODY: lambda: made.body(b"more\r\n"),
        Step.END_OF_MESSAGE: made.end_of_message,
        Step.UNKNOWN: lambda: made.unknown("FOO bar"),
    }
    return calls[step]()
