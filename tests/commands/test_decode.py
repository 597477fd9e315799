"""``fastmilter decode``: every recording, streams, what is broken, a terminal and a pipe."""

import gzip
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fastmilter import codec
from fastmilter.commands.packets import Packet, packets
from fastmilter.commands.recordings import TO_FILTER, TO_MTA, Direction, Piece, open_input, read_pieces
from fastmilter.commands.wording import details
from fastmilter.constants import ALL_ACTIONS, ALL_PROTOCOL, MAX_DATA_BYTES_1M
from tests.support import recordings

from .support import CAPTURES, run, run_on_terminal

OPTNEG = codec.encode(codec.Negotiate(6, ALL_ACTIONS, ALL_PROTOCOL))
ESCAPE = "\x1b["


def read(path: Path) -> list[Packet]:
    with open_input(str(path)) as file:
        return list(packets(read_pieces(file, None)))


def decoded(path: Path, direction: Direction) -> list[Any]:
    return [packet.message for packet in read(path) if packet.direction == direction and packet.message is not None]


# -- recordings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", recordings.paths(), ids=recordings.name_of)
def test_every_recording_decodes_to_what_the_codec_makes_of_it(path: Path) -> None:
    found = read(path)
    conversations = recordings.load(recordings.name_of(path))
    for conversation in conversations:
        decoders = {
            TO_FILTER: (codec.CommandDecoder(MAX_DATA_BYTES_1M), TO_FILTER),
            TO_MTA: (codec.ResponseDecoder(), TO_MTA),
        }
        for direction, (decoder, _) in decoders.items():
            decoder.feed(conversation.stream("mta>filter" if direction == TO_FILTER else "filter>mta"))
            mine = [each for each in found if (each.conn, each.direction) == (conversation.number, direction)]
            assert [each.message for each in mine if each.message is not None] == list(decoder)
            # A recorded side may have died in the middle of a packet; nothing else is wrong with any of them.
            assert any("in the middle of a packet" in each.problem for each in mine) == bool(decoder.buffered)
            at = 0
            for packet in mine:
                if packet.message is not None:
                    assert packet.offset == at
                    at += len(packet.payload) + 4
    events = Counter((each.conn, each.direction, each.event) for each in found if each.event)
    recorded = Counter(
        (each.number, segment.direction, segment.event)
        for each in conversations
        for segment in each.segments
        if segment.event
    )
    assert events == recorded


def test_a_recording_in_a_pipe() -> None:
    done = run("decode", str(CAPTURES / "postfix" / "plain.jsonl"))
    assert (done.status, done.err) == (0, "")
    assert ESCAPE not in done.out
    lines = done.out.splitlines()
    assert lines[0] == "   1      0.002 --> (open)"
    assert lines[1] == "   1      0.004 --> NEGOTIATE       version 6"
    assert lines[2].strip().startswith("actions 0x1ff: ADD_HEADERS CHANGE_BODY ADD_RECIPIENT")
    assert lines[3].strip().endswith("NR_BODY LEADING_SPACE")
    assert any(
        re.fullmatch(r'   1 +0\.\d{3} --> MACRO +for CONNECT: j="mx.lab.test" .* v="Postfix 3.7.11" .*', line)
        for line in lines
    )
    assert any(line.endswith('--> CONNECT         "localhost" IPv4 "127.0.0.1" port 45658') for line in lines)
    assert any(line.endswith('--> BODY            6 bytes "body\\r\\n"') for line in lines)
    assert sum("<-- CONTINUE" in line for line in lines) > 5
    compressed = run("decode", "-", given=gzip.compress((CAPTURES / "postfix" / "plain.jsonl").read_bytes()))
    assert compressed.out == done.out


def test_a_recording_on_a_terminal() -> None:
    path = str(CAPTURES / "postfix" / "plain.jsonl")
    done = run_on_terminal("decode", path, columns=100)
    assert done.status == 0
    assert f"{ESCAPE}36mNEGOTIATE" in done.out
    plain = re.sub(r"\x1b\[\d+m", "", done.out)
    assert max(map(len, plain.splitlines()[:8])) <= 100
    assert plain.replace("\n", " ").split() == run("decode", path).out.replace("\n", " ").split()
    assert ESCAPE not in run_on_terminal("decode", path, NO_COLOR="1").out


def test_json_says_everything(tmp_path: Path) -> None:
    path = CAPTURES / "sendmail" / "8bit-headers.jsonl"
    done = run("decode", "--json", str(path))
    assert done.status == 0
    objects = [json.loads(line) for line in done.out.splitlines()]
    expected = read(path)
    assert len(objects) == len(expected)
    for entry, packet in zip(objects, expected, strict=True):
        assert (entry["conn"], entry["dir"], entry["t"]) == (packet.conn, packet.direction, packet.seconds)
        assert entry.get("event", "") == packet.event
        if packet.message is not None:
            assert entry["size"] == len(packet.payload)
    headers = [entry["fields"] for entry in objects if entry.get("name") == "HEADER"]
    assert {"name", "value"} == set(headers[0])
    assert any(isinstance(fields["value"], dict) and "hex" in fields["value"] for fields in headers)


def test_one_connection_of_many_and_a_reader_that_leaves() -> None:
    path = CAPTURES / "postfix" / "verdict-rcpt.jsonl"
    done = run("decode", "--conn", "3", str(path))
    assert {line.split()[0] for line in done.out.splitlines() if line[:5].strip()} == {"3"}
    assert done.out.count("(open)") == 1


def test_long_values_are_cut_unless_full() -> None:
    stream = OPTNEG + codec.encode(codec.Header(b"Subject", b"y" * 500))
    cut = run("decode", "--from=mta", given=stream)
    assert '"Subject" "' + "y" * 60 + '"... (500 bytes)' in cut.out
    assert f'"{"y" * 500}"\n' in run("decode", "--from=mta", "--full", given=stream).out


# -- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["binary", "hex", "spaced hex", "gzip"])
def test_a_stream_in_any_form(form: str) -> None:
    stream = OPTNEG + codec.encode(codec.Helo(b"mx")) + codec.encode(codec.Quit())
    given = {
        "binary": stream,
        "hex": stream.hex().encode(),
        "spaced hex": stream.hex(" ", 3).upper().encode() + b"\n",
        "gzip": gzip.compress(stream),
    }[form]
    done = run("decode", "--from", "mta", "-", given=given)
    assert (done.status, done.err) == (0, "")
    assert '        17 --> HELO            "mx"\n        25 --> QUIT\n' in done.out


def test_a_stream_needs_its_direction() -> None:
    done = run("decode", given=OPTNEG)
    assert (done.status, done.out) == (64, "")
    assert "say whose with --from mta or --from filter" in done.err
    answer = run("decode", "--from=filter", given=codec.encode(codec.ReplyCode(b"550 5.7.1 no 100%% way")))
    assert answer.out == '         0 <-- REPLY_CODE      550 5.7.1 "no 100% way"\n'


def test_an_empty_input_is_no_error() -> None:
    assert run("decode", "-") == (0, "", "")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("nothing-there",), "nothing-there: No such file or directory"),
        (("tests",), "tests: Is a directory"),
        (("--from=me", "-"), "--from: 'me' will not do: write mta or filter"),
        (("--conn=x", "-"), "'x' is not the number of a connection"),
        (("--ful",), "did you mean --full?"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], error: str) -> None:
    done = run("decode", *words)
    assert done.status == 64
    assert error in done.err
    assert "Traceback" not in done.err


# -- what is broken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "stream", "problem"),
    [
        ("mta", b"\0\0\0\0", "at byte 0 of this direction: length 0: a packet has at least its letter"),
        ("mta", b"GET / HTTP/1.0\r\n\r\n", "this looks like HTTP, not like the milter protocol"),
        ("mta", OPTNEG + b"\0\0\0\x03Hab", "at byte 17 of this direction: HELO ('H')"),
        ("mta", OPTNEG + b"\0\0\0\x01!", "unknown command letter b'!'"),
        ("mta", OPTNEG[:-3], "the stream ends in the middle of a packet: 14 of 17 bytes are here"),
        ("mta", b"\0\0", "2 of 4 or more bytes are here"),
        ("filter", b"\0\0\0\x02cx", "CONTINUE ('c'): 1 byte of data, expected at most 0"),
        ("filter", b"\x7f\xff\xff\xffc", "is above the limit of"),
    ],
)
def test_what_is_broken_is_pointed_at(direction: str, stream: bytes, problem: str) -> None:
    done = run("decode", "--from", direction, given=stream)
    assert done.status == 1
    assert problem in done.out
    assert "!!!" in done.out
    entries = [json.loads(line) for line in run("decode", "--json", "--from", direction, given=stream).out.splitlines()]
    assert problem.partition("direction: ")[2] in entries[-1]["problem"] or problem in entries[-1]["problem"]
    assert bytes.fromhex(entries[-1]["hex"]) in stream


def test_it_goes_on_behind_a_broken_packet_whose_length_is_right() -> None:
    done = run("decode", "--from=mta", given=b"\0\0\0\x03Hab" + codec.encode(codec.Quit()))
    assert done.status == 1
    assert done.out.splitlines()[-1] == "         7 --> QUIT"


def test_holes_and_damaged_lines_of_a_recording() -> None:
    lines = (CAPTURES / "postfix" / "plain.jsonl").read_text().splitlines()
    assert json.loads(lines[7])["segment"] == 3
    with_hole = run("decode", given="\n".join([*lines[:5], "{torn", *lines[6:]]).encode())
    assert with_hole.status == 1
    assert "line 6 of the recording cannot be read" in with_hole.out
    assert "read 3 comes where read 2 should: the recording has a hole" in with_hole.out
    assert with_hole.out.count("<-- CONTINUE") > 5  # the other direction goes on


def test_a_truncated_gzip_shows_what_is_there() -> None:
    content = gzip.compress((CAPTURES / "postfix" / "plain.jsonl").read_bytes())
    done = run("decode", given=content[: len(content) // 2])
    assert done.status == 1
    assert "NEGOTIATE" in done.out
    assert "the compressed file is damaged" in done.out
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"{}",
        b'{"conn": 1}',
        b'{"conn":1,"t":0,"dir":"up","event":"open"}',
        b'{"conn":1,"t":0,"dir":"mta>filter","segment":"a","hex":""}',
    ],
)
def test_no_line_of_a_recording_breaks_it(line: bytes) -> None:
    first = b'{"conn": 1, "t": 0.5, "dir": "mta>filter", "event": "open"}\n'
    found = list(read_pieces(io.BufferedReader(io.BytesIO(first + line + b"\n")), None))
    assert found[0] == Piece(1, 0.5, TO_FILTER, event="open")
    assert "line 2 of the recording cannot be read" in found[1].problem


def test_a_packet_above_what_was_agreed_is_pointed_at() -> None:
    def piece(direction: Direction, segment: int, message: Any) -> Piece:
        return Piece(1, 0.0, direction, segment, codec.encode(message, 1 << 20))

    offer = codec.Negotiate(6, 0, 0x10000000)
    for answer, wrong in ((0, True), (0x10000000, False)):
        found = list(
            packets(
                [
                    piece(TO_FILTER, 0, offer),
                    piece(TO_MTA, 0, codec.Negotiate(6, 0, answer)),
                    piece(TO_FILTER, 1, codec.Body(b"x" * 65536)),
                ]
            )
        )
        assert bool(found[-1].problem) == wrong
        assert found[-1].message is not None


# -- nothing reaches the terminal ----------------------------------------------------------------------------------


def test_bytes_are_quoted_safely() -> None:
    evil = codec.Header(b"X\x1b]0;evil\x07", 'a"\\\r\n\t\u202e\u009b31m\x7f'.encode() + b"\xff")
    (line,) = details(evil)
    assert line == r'"X\x1b]0;evil\x07" "a\"\\\r\n\t\u202e\x9b31m\x7f\xff"'
    stream = codec.encode(evil) + codec.encode(codec.Macros(b"C", ((b"\x1bn", b"\x1bv"),)))
    for done in (run("decode", "--from=mta", given=stream), run("decode", "--full", "--from=mta", given=stream)):
        assert "\x1b" not in done.out
        assert "\u202e" not in done.out


def test_an_ascii_terminal_gets_escapes() -> None:
    stream = codec.encode(codec.Header(b"Subject", "Äpfel".encode()))
    done = run("decode", "--from=mta", given=stream, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.status == 0
    assert r"\xc4pfel" in done.out
