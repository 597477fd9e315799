"""``fastmilter check``: exit status of every verdict, by address and by name; the report, JSON, a terminal."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fastmilter.commands.terminal import CUT_BYTES
from tests.process.harness import ROOT, Server

from .support import Done, run, run_on_terminal

FILTER = """
import sys
from fastmilter import ACCEPT, DISCARD, REJECT, TEMPFAIL, Filter, reply

ANSWERS = {
    "accept": ACCEPT, "reject": REJECT, "tempfail": TEMPFAIL, "discard": DISCARD,
    "no": reply(550, "5.7.1", "no \\x1b[31mthanks"), "later": reply(451, None, "greylisted"),
}

class Tester(Filter):
    def on_mail(self, sender, params):
        if sender.local_part == "raise":
            raise ValueError("the filter's own fault")
        if sender.local_part == "print":
            print("printed by the filter")
        return ANSWERS.get(sender.local_part.removeprefix("mail-")) if sender.local_part.startswith("mail-") else None

    def on_rcpt(self, recipient, params):
        return ANSWERS.get(recipient.local_part)

    def on_header(self, name, value):
        if name == "Subject":
            self.message.change_header("Subject", "[changed] " + value)

    def on_end_of_message(self):
        match self.message.sender.local_part:
            case "edit":
                self.message.add_header("X-Told", " ".join(
                    f"{name}={self.macros[name]}" for name in ("auth_authen", "own", "i") if name in self.macros))
                self.message.add_header("X-Client", f"{self.connection.hostname} {self.connection.address.host}"
                    f" {self.connection.helo} {self.connection.mta}")
                self.message.change_sender("new@example.org")
                self.message.add_recipient("more@example.net")
                self.message.delete_recipient("b@example.net")
                self.message.replace_body(b"new body\\r\\n")
            case "hold":
                self.message.quarantine("looks odd")
            case "nobody":
                self.message.delete_recipient("b@example.net")
        return ANSWERS.get(self.message.sender.local_part)
"""

MESSAGE = b"Received: one\r\n\ttwo\r\nSubject: hello\r\nFrom: a@example.org\r\n\r\nold body\r\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("check")
    (directory / "tester.py").write_text(FILTER)
    (directory / "message.eml").write_bytes(MESSAGE)
    return directory


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    listen = ["inet:0@127.0.0.1", "inet6:0@::1", f"unix:{place}/milter.sock"]
    server = Server(place)
    try:
        yield server.start("--workers=1", target="tester:Tester", listen=listen)
        assert server.stop() == 0
    finally:
        server.kill_all()


STATUSES = [
    ("a", 0, "verdict: continue: delivered to b@example.net"),
    ("accept", 0, "verdict: accept: delivered to b@example.net"),
    ("hold", 0, 'verdict: continue: held by the MTA: "looks odd"'),
    ("nobody", 0, "verdict: continue: no recipient is left"),
    ("reject", 1, "verdict: reject: refused for good"),
    ("no", 1, 'verdict: 550 5.7.1 "no ?[31mthanks": refused for good'),
    ("mail-reject", 1, "verdict: reject: refused for good"),
    ("tempfail", 2, "verdict: tempfail: refused for now"),
    ("later", 2, 'verdict: 451 "greylisted": refused for now'),
    ("raise", 2, "verdict: tempfail: refused for now"),
    ("discard", 3, "verdict: discard: accepted and thrown away"),
    ("mail-discard", 3, "verdict: discard: accepted and thrown away"),
]


def check(server: Server, *words: str, given: bytes = MESSAGE, place: int = 0) -> Done:
    return run("check", server.address(place), "-", *words, given=given)


@pytest.mark.parametrize(("sender", "status", "conclusion"), STATUSES)
def test_the_status_of_each_verdict(server: Server, sender: str, status: int, conclusion: str) -> None:
    done = check(server, "--from", f"{sender}@example.org")
    assert (done.status, done.err) == (status, "")
    assert conclusion in done.out.splitlines()
    assert "\x1b" not in done.out


@pytest.mark.parametrize(("sender", "status"), [("a", 0), ("reject", 1), ("later", 2), ("discard", 3)])
@pytest.mark.parametrize("target", ["tester:Tester", "tester.py:Tester", "./tester.py:Tester"])
def test_a_filter_is_served_for_the_check(place: Path, target: str, sender: str, status: int) -> None:
    done = run("check", target, "message.eml", f"--from={sender}@example.org", cwd=place)
    assert (done.status, done.err) == (status, "")
    assert "verdict: " in done.out


@pytest.mark.parametrize("number", [0, 1, 2], ids=["inet", "inet6", "unix"])
def test_every_kind_of_address(server: Server, number: int) -> None:
    done = check(server, place=number)
    assert done.status == 0
    assert "+Subject: [changed] hello" in done.out.splitlines()


def test_a_bare_path_is_an_address(server: Server, place: Path) -> None:
    assert run("check", f"{place}/milter.sock", str(place / "message.eml")).status == 0


def test_the_report_in_a_pipe(server: Server) -> None:
    done = check(server, "--from=edit@example.org", "--client=mx.example[192.0.2.7]", "--macro", "{auth_authen}=ann")
    assert done.status == 0
    lines = [re.sub(r" +\d+\.\d\d$", " MS", line) for line in done.out.splitlines()]
    assert lines == [
        "step                                         answer                         ms",
        "connect                                      - (not awaited) MS",
        "helo                                         - (not awaited) MS",
        "mail            from <edit@example.org>      continue MS",
        "rcpt            to <b@example.net>           continue MS",
        "data                                         - (not wanted) MS",
        "header          3 fields                     - (not awaited) MS",
        "end_of_headers                               - (not wanted) MS",
        "body                                         - (not wanted) MS",
        "end_of_message                               continue MS",
        "",
        "verdict: continue: delivered to more@example.net",
        "envelope:",
        "  sender: <edit@example.org> becomes <new@example.org>",
        "  - <b@example.net>",
        "  + <more@example.net>",
        "",
        "--- message",
        "+++ after the filter",
        "@@ -1,6 +1,8 @@",
        " Received: one",
        " \ttwo",
        "-Subject: hello",
        "+Subject: [changed] hello",
        " From: a@example.org",
        *[line for line in lines if line.startswith("+X-Told: auth_authen=ann i=")],
        "+X-Client: mx.example 192.0.2.7 mx.example postfix",
        " ",
        "-old body",
        "+new body",
    ]


def test_an_unchanged_message_says_so(server: Server) -> None:
    done = check(server, given=b"From: a@example.org\n\nbody\n")
    assert done.status == 0
    assert done.out.splitlines()[-1] == "the message itself is unchanged"
    assert "---" not in done.out


def test_the_report_on_a_terminal(server: Server, place: Path) -> None:
    done = run_on_terminal("check", server.address(), str(place / "message.eml"), columns=120)
    assert done.status == 0
    assert "\x1b[32m+Subject: [changed] hello\x1b[0m" in done.out
    assert "\x1b[31m-Subject: hello\x1b[0m" in done.out
    assert all(len(re.sub(r"\x1b\[\d+m", "", line)) <= 120 for line in done.out.splitlines())
    plain = run_on_terminal("check", server.address(), str(place / "message.eml"), NO_COLOR="1")
    assert "\x1b" not in plain.out
    refused = run_on_terminal("check", server.address(), str(place / "message.eml"), "--from=no@x.example")
    assert refused.status == 1
    assert '\x1b[31mverdict: 550 5.7.1 "no ?[31mthanks": refused for good\x1b[0m' in refused.out


def test_recipients_one_by_one(server: Server) -> None:
    done = check(server, "--rcpt=c@example.net", "--rcpt=<no@example.net>", "--rcpt=d@example.net")
    assert done.status == 0
    assert "verdict: continue: delivered to c@example.net, d@example.net" in done.out
    assert 'refused recipients:\n  <no@example.net>: 550 5.7.1 "no ?[31mthanks"\n' in done.out
    rows = [line.split() for line in done.out.splitlines() if line.startswith("rcpt")]
    assert [(row[2], row[3]) for row in rows] == [
        ("<c@example.net>", "continue"),
        ("<no@example.net>", "550"),
        ("<d@example.net>", "continue"),
    ]
    all_refused = check(server, "--rcpt=later@example.net", "--rcpt=tempfail@example.net")
    assert all_refused.status == 2


def test_json(server: Server) -> None:
    done = check(server, "--json", "--from=edit@example.org", "--rcpt=b@example.net", "--rcpt=no@example.net")
    found = json.loads(done.out)
    assert done.status == found["status"] == 0
    assert found["verdict"] == {"kind": "continue"}
    assert [step["step"] for step in found["steps"]][:4] == ["connect", "helo", "mail", "rcpt"]
    assert found["refused"][0]["recipient"] == "<no@example.net>"
    assert found["refused"][0]["verdict"]["code"] == 550
    assert {"kind": "ReplaceBody", "chunk": "new body\r\n"} in found["modifications"]
    assert found["result"]["sender"] == "new@example.org"
    assert found["result"]["recipients"] == ["more@example.net"]
    assert found["result"]["message"].endswith("\r\n\r\nnew body\r\n")
    assert "+new body" in found["diff"]
    refused = json.loads(check(server, "--json", "--from=discard@x.example").out)
    assert (refused["status"], refused["result"]["delivered"], refused["diff"]) == (3, False, [])


def test_sendmail_is_played_too(server: Server) -> None:
    done = check(server, "--mta=sendmail", "--from=edit@example.org", "--client=2001:db8::1", "--helo=[2001:db8::1]")
    assert done.status == 0
    assert "+X-Client: [2001:db8::1] 2001:db8:0:0:0:0:0:1 [2001:db8::1] sendmail" in done.out.splitlines()


def test_macros_at_a_step_that_is_named(server: Server) -> None:
    done = check(server, "--from=edit@example.org", "--macro=mail:{own}=x y=z", "--macro=i=QUEUE")
    assert "+X-Told: own=x y=z i=QUEUE" in done.out.splitlines()


def test_a_bounce(server: Server) -> None:
    done = check(server, "--from=", "--json")
    assert json.loads(done.out)["result"]["sender"] == ""
    assert "from <>" in check(server, "--from", "").out


def test_nothing_in_a_message_reaches_the_terminal(server: Server) -> None:
    done = check(server, given=b"Subject: \x1b]0;evil\x07\xff\xc2\x9b\r\n\r\nbody\r\n")
    assert r"+Subject: [changed] \x1b]0;evil\x07\xff\x9b" in done.out.splitlines()
    assert "\x1b" not in done.out


def test_a_long_body_is_not_compared_line_by_line(server: Server) -> None:
    body = b"".join(b"%d\r\n" % number for number in range(20_000))
    done = check(server, "--from=edit@example.org", given=b"Subject: long\r\n\r\n" + body)
    assert done.out.splitlines()[-1] == (f"(body: {len(body)} bytes become 10 bytes; too long to compare line by line)")
    assert "+Subject: [changed] long" in done.out


# -- no verdict ----------------------------------------------------------------------------------------------------


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    done = run("check", f"inet:{port}@127.0.0.1", given=MESSAGE)
    assert (done.status, done.out) == (4, "")
    assert "no verdict: cannot connect to the milter" in done.err


def test_a_milter_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = run("check", f"inet:{silent.getsockname()[1]}@127.0.0.1", "--timeout=0.2", given=MESSAGE)
    assert done.status == 4
    assert "did not answer in time" in done.err


def test_a_filter_that_cannot_be_served(place: Path) -> None:
    (place / "broken.py").write_text("raise RuntimeError('cannot work')\n")
    done = run("check", "broken:Filter", "message.eml", cwd=place)
    assert (done.status, done.out) == (4, "")
    assert "RuntimeError: cannot work" in done.err
    assert "no verdict" in done.err


def test_what_the_filter_says_goes_to_standard_error(place: Path) -> None:
    done = run("check", "tester:Tester", "message.eml", "--from=raise@x.example", "--json", cwd=place)
    assert done.status == json.loads(done.out)["status"] == 2
    assert "the filter's own fault" in done.err
    printed = run("check", "tester:Tester", "message.eml", "--from=print@x.example", cwd=place, PYTHONUNBUFFERED="1")
    assert "printed by the filter" in printed.err
    assert "printed by the filter" not in printed.out


def test_the_filter_gets_its_options(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text('[filter]\nprefix = "[outside]"\n')
    (tmp_path / "message.eml").write_bytes(MESSAGE)
    target = f"{ROOT}/examples/tagger.py:Tagger"
    done = run("check", target, "message.eml", "--config=options.toml", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert "+Subject: [outside] hello" in done.out


def test_no_server_and_no_file_is_left(place: Path, tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    for sender, status in (("a", 0), ("no", 1)):
        done = run(
            "check", "tester:Tester", "message.eml", f"--from={sender}@x.example", cwd=place, TMPDIR=str(tmp_path)
        )
        assert done.status == status
    assert list(tmp_path.iterdir()) == []
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_long_name_of_the_temporary_directory(place: Path, tmp_path: Path) -> None:
    long = tmp_path / ("d" * 100)
    long.mkdir()
    assert run("check", "tester:Tester", "message.eml", cwd=place, TMPDIR=str(long)).status == 0


# -- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "no milter given"),
        (("nonsense",), "TARGET: 'nonsense' does not name a class in a module"),
        (("inet:99999@localhost",), "TARGET: address 'inet:99999@localhost': port 99999 is not between 0 and 65535"),
        (("inet:1@localhost", "nothing.eml"), "nothing.eml: No such file or directory"),
        (("inet:1@localhost", "-", "--mta=exim"), "--mta: 'exim' will not do: write postfix or sendmail"),
        (("inet:1@localhost", "-", "--client=mx.example"), "--client: 'mx.example' is no client"),
        (("inet:1@localhost", "-", "--macro=x"), "--macro: 'x' will not do: write name=value"),
        (("inet:1@localhost", "-", "--macro=smtp:x=y"), "the steps are connect, helo"),
        (("inet:1@localhost", "-", "--recipient=x"), "there is no option --recipient=x"),
        (("inet:1@localhost", "-", "more"), "'more' is one argument too many"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], error: str) -> None:
    done = run("check", *words, given=MESSAGE)
    assert (done.status, done.out) == (64, "")
    assert error in done.err
    assert "Traceback" not in done.err


def test_a_long_recipient_is_cut_in_the_table_only(server: Server) -> None:
    long = "x" * CUT_BYTES + "@example.net"
    done = check(server, "--rcpt", long)
    assert f"delivered to {long}" in done.out
    assert all(len(line) <= 80 for line in done.out.splitlines() if line.startswith("rcpt"))
