"""Hypothesis strategies for what travels between MTA and filter: messages, packets, streams, and ways to cut them."""

from typing import Any

from hypothesis import strategies as st

from fastmilter import codec
from fastmilter.constants import CommandLetter, ResponseLetter

u32 = st.integers(0, 0xFFFFFFFF)
u16 = st.integers(0, 0xFFFF)
# Braces, spaces, "%", line ends and 8-bit bytes are where a codec could be tempted to be clever.
text = st.lists(st.sampled_from([*b"ab{}<> %=\r\n\t.:\xe9\xff\x01"]), max_size=12).map(bytes)
name = text.filter(bool)
words = text.map(lambda string: string.replace(b" ", b""))
raw = st.one_of(st.binary(max_size=40), st.sampled_from([b"\0", b"\0\0\0\x01c", b"\r\n", b"x" * 65535]))
params = st.lists(text, max_size=3).map(tuple)
joined_params = st.lists(words, max_size=3).map(tuple)

negotiations = st.builds(codec.Negotiate, u32, u32, u32, st.lists(st.tuples(u32, text), max_size=7).map(tuple))
macros = st.builds(
    codec.Macros, st.binary(min_size=1, max_size=1), st.lists(st.tuples(text, text), max_size=4).map(tuple)
)
connects = st.one_of(
    st.builds(codec.Connect, text, st.sampled_from([b"4", b"6", b"L"]), u16, text),
    st.builds(codec.Connect, text, st.just(b"U")),
)

commands: st.SearchStrategy[codec.Command] = st.one_of(
    negotiations,
    macros,
    connects,
    st.builds(codec.Helo, text),
    st.builds(codec.MailFrom, text, params),
    st.builds(codec.RcptTo, text, params),
    st.builds(codec.Header, name, text),
    st.builds(codec.Body, raw.filter(bool)),
    st.builds(codec.EndOfMessage, raw),
    st.builds(codec.Unknown, text),
    st.sampled_from([codec.Data(), codec.EndOfHeaders(), codec.Abort(), codec.Quit(), codec.QuitNewConnection()]),
)

responses: st.SearchStrategy[codec.Response] = st.one_of(
    negotiations,
    st.builds(codec.ReplyCode, text),
    st.builds(codec.AddHeader, name, text),
    st.builds(codec.InsertHeader, u32, name, text),
    st.builds(codec.ChangeHeader, u32, name, text),
    st.builds(codec.AddRecipient, text, joined_params),
    st.builds(codec.DeleteRecipient, text),
    st.builds(codec.ChangeSender, text, joined_params),
    st.builds(codec.ReplaceBody, raw),
    st.builds(codec.Quarantine, text),
    st.sampled_from(
        [
            codec.Continue(),
            codec.Accept(),
            codec.Reject(),
            codec.TempFail(),
            codec.Discard(),
            codec.Skip(),
            codec.Progress(),
            codec.Shutdown(),
            codec.ConnectionFail(),
        ]
    ),
)


def framed(payload: bytes) -> bytes:
    """A packet with an honest length, whatever is in it."""
    return len(payload).to_bytes(4, "big") + payload


letters = st.sampled_from([letter.value for kind in (CommandLetter, ResponseLetter) for letter in kind])
# What stands behind a letter is made of what matters to a decoder: NULs, families, and nothing in particular.
contents = st.lists(st.sampled_from([b"\0", b"\0", b"4", b"6", b"L", b"U", b"a", b" ", b"\xff"]), max_size=12).map(
    b"".join
)
nearly_packets = st.builds(lambda letter, content: framed(letter + content), letters, contents)
wrong_lengths = st.builds(
    lambda length, rest: length.to_bytes(4, "big") + rest,
    st.one_of(u32, st.sampled_from([0, 1, 12, 13, 65535, 65536, 65537, 0x80000000, 0xFFFFFFFF])),
    st.binary(max_size=8),
)


def streams(messages: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Streams in which good packets, nearly good ones and plain bytes follow each other."""
    pieces = st.one_of(
        messages.map(codec.encode), messages.map(codec.encode), nearly_packets, wrong_lengths, st.binary(max_size=12)
    )
    return st.lists(pieces, max_size=6).map(b"".join)


@st.composite
def cuts(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """The stream in pieces: any number of them, of any size."""
    places = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]
