"""What is warned of, and what is not: each warning both ways."""

import functools
import math
import os
import pwd
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastmilter import Filter, early_verdict, no_reply
from fastmilter.constants import POSTFIX_CONTENT_MACROS, POSTFIX_KNOWN_MACROS, POSTFIX_MACRO_SETTINGS, POSTFIX_MACROS
from fastmilter.constants import STEPS as ALL_STEPS
from fastmilter.endpoints import parse_endpoint
from fastmilter.server import advice, deadlines
from fastmilter.server.advice import (
    Account,
    about_access,
    about_backlog,
    about_deadlines,
    about_health,
    about_macros_read,
    about_requested_macros,
    about_sockets,
    mta_accounts,
    spellings,
    warnings_about_filter,
    warnings_at_start,
    why_unreachable,
)
from fastmilter.server.settings import Settings, load_settings


def settings(**options: object) -> Settings:
    return load_settings({"target": "tagger:Tagger", **options}, {})


class Quick(Filter):
    """Nothing to say about it."""

    def on_rcpt(self, recipient, params):  # type: ignore[no-untyped-def]
        return self.macros["i"], self.macros.get("{rcpt_addr}"), self.macros["{tls_version}"], self.macros["v"]


def filter_with(*names: str, **attributes: Any) -> type[Filter[Any]]:
    """A filter with callbacks that may return a verdict."""

    def two(self: Any, first: object, second: object) -> Any:
        return self.verdict

    def one(self: Any, first: object) -> Any:
        return self.verdict

    def none(self: Any) -> Any:
        return self.verdict

    counts: dict[str, Any] = {"on_connect": two, "on_mail": two, "on_rcpt": two, "on_header": two}
    counts |= {name: one for name in ("on_helo", "on_body", "on_unknown")}
    return type("Made", (Filter,), {**{name: counts.get(name, none) for name in names}, **attributes})


# -- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (
            "inet:8894",
            [
                "Postfix does not take inet:8894: it wants smtpd_milters = inet:127.0.0.1:8894",
                "Sendmail: INPUT_MAIL_FILTER(`fastmilter', `S=inet:8894@127.0.0.1, F=T')",
            ],
        ),
        (
            "inet:[2001:db8::1]:milter",
            [
                "Postfix does not take inet6:milter@[2001:db8::1]: it wants smtpd_milters = inet:[2001:db8::1]:milter",
                "Sendmail: INPUT_MAIL_FILTER(`fastmilter', `S=inet6:milter@[2001:db8::1], F=T')",
            ],
        ),
        (
            "local:/run/fm.sock?mode=0600",
            [
                "Postfix in a chroot at /var/spool/postfix (Debian) sees only what is below it: there"
                " smtpd_milters = unix:/run/fm.sock means --listen unix:/var/spool/postfix/run/fm.sock",
                "Sendmail: INPUT_MAIL_FILTER(`fastmilter', `S=unix:/run/fm.sock, F=T')",
            ],
        ),
        (
            "/var/spool/postfix/fm/fm.sock",
            [
                "Postfix in a chroot at /var/spool/postfix (Debian) wants smtpd_milters = unix:/fm/fm.sock",
                "Sendmail: INPUT_MAIL_FILTER(`fastmilter', `S=unix:/var/spool/postfix/fm/fm.sock, F=T')",
            ],
        ),
        ("fd:3", []),
        ("systemd", []),
        ("unix:@fm", []),
        ("inet:8894?proxy=yes", []),
    ],
)
def test_how_the_mtas_spell_it(address: str, told: list[str]) -> None:
    assert list(spellings(parse_endpoint(address))) == told


@pytest.mark.parametrize(
    ("options", "warnings"),
    [
        ({}, []),
        ({"listen": ["inet:1@127.0.0.1", "unix:/m", "inet6:1@[::1]", "inet:1@127.0.0.2", "fd:3"]}, []),
        ({"listen": ["inet:1@localhost", "inet:1@mail.example", "inet6:1@[::ffff:127.0.0.1]"]}, []),
        ({"listen": "inet:1"}, ["everybody who reaches this machine may connect to inet:1: see --allow"]),
        ({"listen": "inet6:1@[::]"}, ["everybody who reaches this machine may connect to inet6:1@[::]: see --allow"]),
        *(
            ({"listen": address}, [f"everybody who reaches this machine may connect to {address}: see --allow"])
            for address in (
                "inet:8894@192.0.2.11",
                "inet6:1@[2001:db8::1]",
                "inet6:1@[fe80::1%eth0]",
                "inet6:1@[0::0]",
                "inet6:1@[::ffff:0.0.0.0]",
            )
        ),
        (
            {"listen": "inet:1@192.0.2.11?proxy=yes", "proxy_from": "192.0.2.5"},
            ["everybody who reaches this machine may connect to inet:1@192.0.2.11?proxy=yes: see --allow"],
        ),
        *(
            (
                {"listen": address, "proxy_from": "192.0.2.5"},
                [f"everybody who reaches a proxy of --proxy-from may connect to {address} through it: see --allow"],
            )
            for address in ("inet:1@127.0.0.1?proxy=yes", "fd:3?proxy=yes")
        ),
        ({"listen": "inet:1@192.0.2.11?proxy=yes", "proxy_from": "192.0.2.5", "allow": "192.0.2.0/24"}, []),
        ({"listen": "inet:1", "allow": "192.0.2.0/24"}, []),
        (
            {"listen": "unix:/p?mode=0666"},
            ["everybody on this machine may connect to unix:/p?mode=0666: see --allow-user"],
        ),
        ({"listen": "unix:/p?mode=0666", "allow_user": "root"}, []),
        ({"listen": "unix:/p?mode=0664"}, []),
        ({"listen": "unix:/m", "allow": "::1"}, ["--allow means nothing on unix sockets: see --allow-user"]),
        ({"allow_user": "root"}, ["--allow-user means nothing on TCP: see --allow"]),
        (
            {"listen": "unix:@m"},
            [
                "everybody on this machine may connect to unix:@m, which has no permissions: see --allow-user",
                "neither Postfix nor Sendmail can connect to unix:@m, which has no path: write unix:/path for them",
            ],
        ),
        (
            {"listen": "unix:@m", "allow_user": "root"},
            ["neither Postfix nor Sendmail can connect to unix:@m, which has no path: write unix:/path for them"],
        ),
    ],
)
def test_access(options: dict[str, object], warnings: list[str]) -> None:
    assert list(about_access(settings(**options))) == warnings


def test_a_directory_keeps_users_out_of_a_socket_that_is_open_to_all(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    assert list(about_access(settings(listen=f"unix:{tmp_path}/fm.sock?mode=0666"))) == []


TCP_CHECK = "/healthz connects from {}, which is in no network of --allow, and will always fail: add it"


@pytest.mark.parametrize(
    ("options", "warnings"),
    [
        ({"listen": "inet:1", "allow": "192.0.2.0/24"}, [TCP_CHECK.format("127.0.0.1")]),
        ({"listen": "inet6:1@[::]", "allow": "192.0.2.0/24"}, [TCP_CHECK.format("::1")]),
        ({"listen": "inet:1@192.0.2.9", "allow": "127.0.0.1"}, [TCP_CHECK.format("192.0.2.9")]),
        ({"listen": "inet:1@192.0.2.9", "allow": "192.0.2.0/24"}, []),
        ({"listen": "inet:1@mail.example", "allow": "192.0.2.0/24"}, []),
        ({"listen": "inet:1"}, []),
        ({"listen": "fd:3", "allow": "192.0.2.0/24"}, []),
        ({"listen": "inet:1", "allow": "192.0.2.0/24", "metrics": "none"}, []),
        (
            {"listen": "unix:@m", "allow_user": "54321"},
            [f"/healthz connects as user {os.geteuid()}, who is none of --allow-user, and will always fail: add it"],
        ),
        ({"listen": "unix:@m", "allow_user": str(os.geteuid())}, []),
    ],
)
def test_what_a_health_check_cannot_reach(options: dict[str, object], warnings: list[str]) -> None:
    assert list(about_health(settings(**{"metrics": "127.0.0.1:9894", **options}))) == warnings


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_unix_socket_that_the_monitor_may_not_use() -> None:
    options = {"metrics": "127.0.0.1:9894", "user": "nobody", "listen": "unix:/run/fm.sock?mode=0660"}
    (warning,) = about_health(settings(**options))
    assert warning.startswith("/healthz connects as user nobody and cannot, so it will always fail: it has mode 0660")
    assert list(about_health(settings(**{**options, "listen": "unix:/run/fm.sock?mode=0666"}))) == []


def test_the_backlog() -> None:
    assert list(about_backlog(4096, None)) == list(about_backlog(4096, 4096)) == []
    cut = "the kernel cuts the backlog of 4097 to 4096: raise net.core.somaxconn to 4097"
    assert list(about_backlog(4097, 4096)) == [cut]


def test_what_a_start_warns_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "shortage", lambda settings: None)
    monkeypatch.setattr(advice, "kernels_backlog", lambda: 100)
    assert list(warnings_at_start(settings(backlog="100"))) == []
    monkeypatch.setattr(advice, "shortage", lambda settings: "too few")
    assert [line.split()[0] for line in warnings_at_start(settings(backlog="101", allow_user="root"))] == [
        "--allow-user",
        "the",
        "too",
    ]


# -- unix sockets --------------------------------------------------------------------------------------------------

ME = os.geteuid(), os.getegid()
POSTFIX = Account("postfix", 70104, frozenset({70107}))
MEMBER = Account("postfix", 70104, frozenset({70107, ME[1]}))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that everybody may enter, though those above it may be private."""
    tmp_path.chmod(0o755)
    return tmp_path


def why(address: str, account: Account, inside: Path) -> str | None:
    """``why_unreachable``, with everything above ``inside`` open to all."""

    def status_of(path: str) -> os.stat_result:
        status = os.stat(path)
        if Path(path).is_relative_to(inside):
            return status
        return os.stat_result((status.st_mode | 0o111, *tuple(status)[1:]))

    return why_unreachable(parse_endpoint(address), account, status_of)


def test_the_mode_of_the_socket_counts(place: Path) -> None:
    socket = f"unix:{place}/fm.sock"
    refused = why(socket, POSTFIX, place)
    assert refused is not None
    assert refused.startswith("it has mode 0660, owner ")
    assert refused.endswith(f": write {socket}?mode=0660&group=postfix")
    assert why(socket, MEMBER, place) is None
    assert why(socket + "?mode=0600", MEMBER, place) is not None
    assert why(socket + "?mode=0666", POSTFIX, place) is None
    assert why(socket + "?mode=0606", MEMBER, place) is not None, "the group has less than the others"
    assert why(socket, Account("sendmail", 0, frozenset({0})), place) is None
    assert why(socket, Account("postfix", ME[0], frozenset()), place) is None


def test_the_owner_and_the_group_that_are_asked_for_count(place: Path) -> None:
    socket = f"unix:{place}/fm.sock"
    assert why(f"{socket}?group=70107", POSTFIX, place) is None
    assert why(f"{socket}?owner=70104", POSTFIX, place) is None
    assert why(f"{socket}?mode=0600&group=70107", POSTFIX, place) is not None
    told = why(f"{socket}?owner=70999&group=70998", POSTFIX, place)
    assert told == (
        f"it has mode 0660, owner 70999, group 70998: write unix:{place}/fm.sock?mode=0660&owner=70999&group=postfix"
    )
    assert why(f"{socket}?group=no-such-group", POSTFIX, place) is None, "a server with this does not start"


def test_each_directory_on_the_way_counts(place: Path) -> None:
    (place / "outer" / "inner").mkdir(parents=True)
    (place / "link").symlink_to("outer")
    socket = f"unix:{place}/link/inner/fm.sock?mode=0666"
    for directory in (place / "outer", place / "outer" / "inner"):
        assert why(socket, POSTFIX, place) is None
        directory.chmod(0o700)
        told = why(socket, POSTFIX, place)
        assert told is not None
        assert told.startswith(f"it may not enter {directory} (mode 0700, owner ")
        assert told.endswith(f"): chmod o+x {directory}")
        directory.chmod(0o711)


def test_a_directory_that_is_not_there_yet_is_no_warning(place: Path) -> None:
    assert why(f"unix:{place}/later/fm.sock?mode=0666", POSTFIX, place) is None
    assert why(f"unix:{place}/later/fm.sock", POSTFIX, place) is not None, "the socket's own mode is known"


def test_a_directory_may_hand_down_its_group(place: Path) -> None:
    status = os.stat_result((stat.S_IFDIR | stat.S_ISGID | 0o755, 1, 1, 1, 0, 70107, 0, 0, 0, 0))
    endpoint = parse_endpoint(f"unix:{place}/fm.sock")
    assert why_unreachable(endpoint, POSTFIX, lambda path: status) is None
    plain = os.stat_result((stat.S_IFDIR | 0o755, *tuple(status)[1:]))
    assert why_unreachable(endpoint, POSTFIX, lambda path: plain) is not None


def test_only_users_that_are_there_count() -> None:
    def look_up(name: str) -> Any:
        if name != "smmsp":
            raise KeyError(name)
        return SimpleNamespace(pw_uid=70025, pw_gid=70026)

    found = mta_accounts(look_up, lambda name, gid: [gid, 70100])
    assert found == [Account("smmsp", 70025, frozenset({70026, 70100}))]
    socket = parse_endpoint("unix:/fm.sock")
    (told,) = about_sockets([socket, parse_endpoint("inet:1"), parse_endpoint("unix:@m")], found)
    assert told.startswith("user smmsp (of Sendmail) cannot connect to unix:/fm.sock: it has mode 0660, ")
    assert told.endswith("?mode=0660&group=smmsp; a Sendmail that runs as root can")
    assert list(about_sockets([socket], [])) == []
    root = pwd.getpwuid(0)
    assert mta_accounts(lambda name: root)[0].uid == 0


# -- macros --------------------------------------------------------------------------------------------------------


def test_the_tables_of_macros_agree() -> None:
    by_default = {name for names in POSTFIX_MACROS.values() for name in names}
    assert by_default <= set(POSTFIX_KNOWN_MACROS)
    assert set(POSTFIX_KNOWN_MACROS) > POSTFIX_CONTENT_MACROS
    assert set(POSTFIX_MACRO_SETTINGS) == {step for step, facts in ALL_STEPS.items() if facts.macro_stage is not None}


@pytest.mark.parametrize(
    ("macros", "warnings"),
    [
        ({}, []),
        ({"rcpt": ["{rcpt_addr}", "i"], "data": ["j", "{cipher}"], "end_of_message": ["{tls_version}"]}, []),
        (
            {"rcpt": ["client_port", "{client_ptr}"]},
            [
                "Postfix does not send {client_port} {client_ptr} at rcpt by default, only because the filter asks for"
                " it: where something in between drops that request (SETSYMLIST), write milter_rcpt_macros ="
                " i {rcpt_addr} {rcpt_host} {rcpt_mailer} {client_port} {client_ptr} in main.cf"
            ],
        ),
        (
            {"connect": ["{if_addr}"], "end_of_message": ["{auth_ssf}"]},
            [
                "Postfix does not have {if_addr}, asked for at connect: read it with self.macros.get(name)",
                "Postfix does not have {auth_ssf}, asked for at end_of_message: read it with self.macros.get(name)",
            ],
        ),
        ({"connect": ["i"]}, ["Postfix has no value of i at connect yet: ask for it at rcpt"]),
        ({"helo": ["{mail_addr}"]}, ["Postfix has no value of {mail_addr} at helo yet: ask for it at mail"]),
        (
            {"end_of_message": ["{client_resolve}"]},
            [
                "Postfix does not send {client_resolve} at end_of_message: ask for it at connect, from where its value"
                " stays"
            ],
        ),
    ],
)
def test_requested_macros(macros: dict[str, list[str]], warnings: list[str]) -> None:
    assert list(about_requested_macros(filter_with("on_mail", request_macros=macros))) == warnings


def test_a_macro_asked_for_early_need_not_be_sent_late() -> None:
    macros = {"connect": ["{client_resolve}"], "end_of_message": ["{client_resolve}"]}
    (told,) = about_requested_macros(filter_with("on_mail", request_macros=macros))
    assert "at connect by default" in told


class Reading(Filter):
    """Reads macros in every way."""

    def on_connect(self, hostname, address):  # type: ignore[no-untyped-def]
        return self.connection.macros.get("client_port")

    def on_rcpt(self, recipient, params):  # type: ignore[no-untyped-def]
        self.helper()
        return [self.macros["{if_addr}"] for _ in params], self.macros.get("{auth_ssf}"), self.macros["i"]

    def helper(self) -> object:
        """Not a callback, but of the filter."""
        text = "macros"
        return text, "client_name", self.macros["client_ptr"]


class Asking(Reading):
    """Asks for them."""

    request_macros = {"connect": ["{client_port}", "{client_ptr}"]}  # noqa: RUF012


def test_macros_that_are_read() -> None:
    has = "which Postfix does not have: use self.macros.get('{if_addr}')"
    assert list(about_macros_read(Reading)) == [
        "Reading.on_connect reads the macro {client_port}, which Postfix does not send by default:"
        ' write request_macros = {"connect": ["{client_port}"]}',
        f"Reading.on_rcpt reads the macro {{if_addr}}, {has}",
        "Reading.helper reads the macro {client_ptr}, which Postfix does not send by default:"
        ' write request_macros = {"connect": ["{client_ptr}"]}',
    ]
    assert [line.split(",")[0] for line in about_macros_read(Asking)] == [
        "Reading.on_rcpt reads the macro {if_addr}"
    ], "what a class inherits counts, and what it asks for is there"
    assert list(about_macros_read(Quick)) == []


def logged(callback: Any) -> Any:
    """A decorator as users write them."""

    @functools.wraps(callback)
    def call(self: Any, *arguments: object) -> Any:
        return callback(self, *arguments)

    return call


class Early(Filter):
    """Reads macros before they are there."""

    def on_connect(self, hostname, address):  # type: ignore[no-untyped-def]
        self.state = self.macros["{rcpt_addr}"], [self.macros.get("{tls_version}") for _ in hostname], self.macros["j"]

    @logged
    def on_helo(self, name):  # type: ignore[no-untyped-def]
        macros = self.macros
        print(macros.get("{mail_addr}"), macros["{daemon_name}"])

    def on_mail(self, sender, params):  # type: ignore[no-untyped-def]
        return self.macros["i"]


EARLY = "Early.{} reads the macro {}, which Postfix does not send before {}: read it there or later"


class InTime(Filter):
    """Reads nothing too early, though it may look so."""

    request_macros = {"helo": ["{client_port}"]}  # noqa: RUF012

    def on_connect(self, hostname, address):  # type: ignore[no-untyped-def]
        self.later = lambda: self.macros["{rcpt_addr}"]
        macros = {"{mail_addr}": 1}
        return macros["{mail_addr}"]

    def on_helo(self, name):  # type: ignore[no-untyped-def]
        return self.macros["client_port"], self.helper()  # type: ignore[no-untyped-call]

    def on_mail(self, sender, params):  # type: ignore[no-untyped-def]
        return self.macros.get("i") or ("i" in self.macros and self.macros["i"])

    def on_rcpt(self, recipient, params):  # type: ignore[no-untyped-def]
        return self.macros["{rcpt_addr}"]

    def on_rejected_rcpt(self, recipient, params, reply):  # type: ignore[no-untyped-def]
        return self.macros["{rcpt_mailer}"]

    def on_abort(self):  # type: ignore[no-untyped-def]
        return self.macros["i"]

    def helper(self):  # type: ignore[no-untyped-def]
        """Not a callback: nobody knows when it is called."""
        return self.macros["{rcpt_host}"]


class AskingLate(Filter):
    """Asks for a macro at a later step than it reads it."""

    request_macros = {"rcpt": ["{client_port}"]}  # noqa: RUF012

    def on_helo(self, name):  # type: ignore[no-untyped-def]
        return self.macros.get("client_port")


class Careful(Filter):
    """Is ready for a macro that is missing."""

    def on_mail(self, sender, params):  # type: ignore[no-untyped-def]
        try:
            return [self.macros["i"], *(self.macros["{if_addr}"] for _ in params)]
        except KeyError:
            return None


def test_macros_that_are_read_too_early() -> None:
    assert list(about_macros_read(Early)) == [
        EARLY.format("on_connect", "{rcpt_addr}", "rcpt"),
        EARLY.format("on_connect", "{tls_version}", "helo")
        + ', or write request_macros = {"connect": ["{tls_version}"]}',
        EARLY.format("on_helo", "{mail_addr}", "mail"),
        EARLY.format("on_mail", "i", "rcpt"),
    ]
    assert list(about_macros_read(AskingLate)) == [
        "AskingLate.on_helo reads the macro {client_port}, which Postfix does not send before rcpt: read it there or"
        ' later, or write request_macros = {"helo": ["{client_port}"]}'
    ]
    assert list(about_macros_read(InTime)) == []
    assert list(about_macros_read(Careful)) == []


# -- deadlines -----------------------------------------------------------------------------------------------------


def test_the_time_outs_are_above_our_own_deadlines() -> None:
    assert deadlines.COMMAND_S < deadlines.SENDMAIL_ANSWER_S
    assert deadlines.POSTFIX_COMMAND_S < deadlines.POSTFIX_COMMAND_TIMEOUT_S
    assert min(deadlines.POSTFIX_CONTENT_TIMEOUT_S, deadlines.SENDMAIL_END_S) > deadlines.CONTENT_S


def settings_named(*names: str, **attributes: Any) -> list[str]:
    """Which settings of the MTAs the warnings name."""
    warnings = about_deadlines(filter_with(*names, **{"blocking": True, **attributes}))
    return [line.partition(": set ")[2].removesuffix(", or lower the deadline") for line in warnings]


@pytest.mark.parametrize(
    ("deadline", "named"),
    [
        (None, []),
        (9.9, []),
        ({"rcpt": 9, "end_of_message": 299}, []),
        ({"rcpt": 10}, ["T=R:15s in its INPUT_MAIL_FILTER"]),
        ({"rcpt": 29.5}, ["T=R:35s in its INPUT_MAIL_FILTER"]),
        ({"rcpt": 30}, ["T=R:35s in its INPUT_MAIL_FILTER", "milter_command_timeout = 35s"]),
        ({"end_of_message": 300}, ["T=E:320s in its INPUT_MAIL_FILTER", "milter_content_timeout = 320s"]),
        ({"data": 3600, "helo": 3600, "header": 3600}, []),  # nobody waits for these
    ],
)
def test_deadlines_above_the_time_outs(deadline: Any, named: list[str]) -> None:
    assert settings_named("on_rcpt", "on_header", "on_end_of_message", deadline=deadline) == named


def test_one_line_names_all_steps() -> None:
    made = filter_with("on_mail", "on_rcpt", blocking=True, deadline={"mail": 20, "rcpt": 40, "data": 80})
    assert list(about_deadlines(made)) == [
        "the deadline at mail (20 s), rcpt (40 s) is not below the 10 s that Sendmail waits by default:"
        " set T=R:45s in its INPUT_MAIL_FILTER, or lower the deadline",
        "the deadline at rcpt (40 s) is not below the 30 s that Postfix waits by default, and longer only where"
        " PROGRESS reaches it: set milter_command_timeout = 45s, or lower the deadline",
    ]


def test_where_the_mta_waits_counts() -> None:
    sendmail, postfix = "T=R:45s in its INPUT_MAIL_FILTER", "milter_command_timeout = 45s"
    assert settings_named("on_end_of_message", deadline=40) == [], "nothing runs before the end"
    made = filter_with("on_helo")
    quiet = no_reply(vars(made)["on_helo"])
    assert settings_named(on_helo=quiet, deadline={"helo": 40}) == []
    assert settings_named(on_helo=quiet, deadline={"mail": 40}) == [sendmail, postfix], "MAIL waits for HELO"
    assert settings_named("on_unknown", deadline={"unknown": 40}) == [sendmail, postfix]
    early = early_verdict(vars(filter_with("on_header"))["on_header"])
    assert settings_named("on_header", deadline={"header": 40}) == []
    assert settings_named(on_header=early, deadline={"header": 40}) == [sendmail], "Postfix waits longer for content"


def test_a_deadline_that_never_ends() -> None:
    (told,) = about_deadlines(filter_with("on_rcpt", "on_end_of_message", blocking=True, deadline=math.inf))
    assert told.startswith("the deadline at rcpt, end_of_message never ends, and no MTA waits for ever: write")
    assert list(about_deadlines(filter_with("on_rcpt", blocking=True, deadline={"data": math.inf}))) == []


def test_a_deadline_that_nobody_keeps() -> None:
    made = filter_with("on_rcpt", deadline=5)
    (told,) = about_deadlines(made)
    assert told.startswith("the deadline of Made means nothing, since its callbacks run in the loop of the worker")
    assert list(about_deadlines(filter_with("on_rcpt", deadline=5, blocking=True))) == []
    assert list(about_deadlines(filter_with("on_rcpt"))) == []


def test_a_filter_that_does_nothing() -> None:
    assert list(warnings_about_filter(filter_with())) == ["Made overrides no callback: it does nothing"]
    assert list(warnings_about_filter(Quick)) == []
