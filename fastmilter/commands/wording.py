"""Messages of the protocol in words, for ``decode`` and ``check``."""

from enum import IntFlag

from fastmilter import codec
from fastmilter.commands.terminal import quoted
from fastmilter.constants import Action, CommandLetter, Family, MacroStage, ProtocolFlag, ResponseLetter
from fastmilter.errors import RemoteProtocolError
from fastmilter.replies import Verdict, verdict_of


def name_of_letter(letter: bytes, *, command: bool) -> str:
    """Return the name of a letter, ``?`` and the letter for one that is unknown.

    >>> name_of_letter(b"E", command=True), name_of_letter(b"h", command=False), name_of_letter(b"!", command=True)
    ('END_OF_MESSAGE', 'ADD_HEADER', '?!')
    """
    try:
        return (CommandLetter(letter) if command else ResponseLetter(letter)).name
    except ValueError:
        return f"?{quoted(letter)[1:-1]}"


def flags(value: int, kind: type[IntFlag]) -> str:
    """Return bits by their names, those without one as a number.

    >>> flags(0x11, Action), flags(0, Action), flags(0x1000, Action)
    ('0x11: ADD_HEADERS CHANGE_HEADERS', '0x0: none', '0x1000: 0x1000')
    """
    names = [each.name or "" for each in kind if value & each]
    rest = value & ~sum(kind)
    return f"{value:#x}: " + (" ".join([*names, hex(rest)] if rest else names) or "none")


def details(message: codec.Command | codec.Response, *, full: bool = False) -> list[str]:
    """Return what a message says, without its name: a line, and more lines where there is much to say."""
    match message:
        case codec.Negotiate():
            return _negotiation(message)
        case codec.Macros(command, values):
            pairs = " ".join(f"{quoted(name)[1:-1]}={quoted(value, full=full)}" for name, value in values)
            return [f"for {name_of_letter(command, command=True)}: {pairs or 'none'}"]
        case codec.Connect(hostname, family, port, address):
            return [f"{quoted(hostname, full=full)} {_address(family, port, address)}"]
        case codec.Body(chunk) | codec.EndOfMessage(chunk) | codec.ReplaceBody(chunk):
            return [_chunk(chunk, full=full)]
        case codec.ReplyCode(text):
            return [_reply(message, text, full=full)]
    return [" ".join(_plain(getattr(message, name), full=full) for name in message.__match_args__).rstrip()]


def _plain(value: object, *, full: bool) -> str:
    if isinstance(value, bytes):
        return quoted(value, full=full)
    if isinstance(value, tuple):
        return " ".join(_plain(each, full=full) for each in value)
    return str(value)


def _negotiation(message: codec.Negotiate) -> list[str]:
    lines = [
        f"version {message.version}",
        f"actions {flags(message.actions, Action)}",
        f"protocol {flags(message.protocol, ProtocolFlag)}",
    ]
    for stage, names in message.macros:
        known = stage in MacroStage.__members__.values()
        lines.append(f"macros wanted for {MacroStage(stage).name if known else stage}: {quoted(names, full=True)}")
    return lines


def _address(family: bytes, port: int, address: bytes) -> str:
    kinds = {Family.INET.value: "IPv4", Family.INET6.value: "IPv6", Family.UNIX.value: "unix socket"}
    if family == Family.UNKNOWN.value:
        return "address unknown"
    kind = kinds.get(family, f"family {family!r}")
    return f"{kind} {quoted(address)}" + ("" if family == Family.UNIX.value else f" port {port}")


def _chunk(chunk: bytes, *, full: bool) -> str:
    size = f"{len(chunk)} byte{'' if len(chunk) == 1 else 's'}"
    if not chunk:
        return ""
    # The size stands in front, so it need not be told a second time behind what is cut.
    return f"{size} {quoted(chunk, full=full).removesuffix(f' ({len(chunk)} bytes)')}"


def _reply(message: codec.ReplyCode, text: bytes, *, full: bool) -> str:
    try:
        verdict = verdict_of(message)
    except RemoteProtocolError as error:
        return f"{quoted(text, full=full)} (an MTA would not take it: {error})"
    return answer(verdict, full=full)


def answer(verdict: Verdict, *, full: bool = False) -> str:
    r"""Return a verdict in words: ``continue``, ``550 5.7.1 "no thanks"``."""
    if verdict.code is None:
        return str(verdict.kind)
    codes = " ".join(str(part) for part in (verdict.code, verdict.enhanced) if part)
    return f"{codes} {quoted((verdict.text or '').encode('utf-8', 'surrogateescape'), full=full)}"
