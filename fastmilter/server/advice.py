"""What is allowed, and hardly meant: warnings about a server, its filter and the MTAs that are to use both.

``serve --check-config`` prints all of it; a server that starts logs what ``warnings_at_start`` yields. Each warning is
one line that says what is wrong and what to write instead. Nothing here changes anything or opens a socket, and what
cannot be found out (a directory that is not there yet, a kernel that tells no limit) is no warning.
"""

import dis
import grp
import math
import os
import pwd
import re
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import CodeType
from typing import Any, Final, NamedTuple

from fastmilter.constants import (
    POSTFIX_CONTENT_MACROS,
    POSTFIX_KNOWN_MACROS,
    POSTFIX_MACRO_SETTINGS,
    POSTFIX_MACROS,
    STEPS,
    Step,
)
from fastmilter.endpoints import Endpoint, EndpointKind, parse_endpoint
from fastmilter.errors import ConfigError
from fastmilter.filter import Filter
from fastmilter.negotiation import STEP_NUMBERS, normalise_macro
from fastmilter.plan import CONTENT_STEPS, callback_name
from fastmilter.server.deadlines import (
    POSTFIX_COMMAND_TIMEOUT_S,
    POSTFIX_CONTENT_TIMEOUT_S,
    SENDMAIL_ANSWER_S,
    SENDMAIL_END_S,
    Deadlines,
)
from fastmilter.server.descriptors import shortage
from fastmilter.server.listen import UNIX_MODE, kernels_backlog, spelling_for_postfix
from fastmilter.server.peers import Rules, address_of
from fastmilter.server.privileges import group_number, identity_for, user_number
from fastmilter.server.settings import Settings

_TCP: Final = {EndpointKind.INET, EndpointKind.INET6}


def warnings_at_start(settings: Settings) -> Iterator[str]:
    """Yield what a server should say whenever it starts or reloads."""
    yield from about_access(settings)
    yield from about_health(settings)
    yield from about_backlog(settings.backlog, kernels_backlog())
    short = shortage(settings)
    if short is not None:
        yield short  # with a number that was asked for nothing comes to this line: it is refused before


def warnings_about_settings(settings: Settings) -> Iterator[str]:
    """Yield what ``--check-config`` warns of before it knows the filter; call it as the user that is to listen."""
    yield from warnings_at_start(settings)
    yield from about_sockets(settings.listen, mta_accounts())


def warnings_about_filter(filter_class: type[Filter[Any]]) -> Iterator[str]:
    """Yield what is odd about a filter class, beyond what ``plan.describe`` says of its negotiation."""
    if not filter_class._fastmilter_plan.overridden:
        yield f"{filter_class.__name__} overrides no callback: it does nothing"
    yield from about_requested_macros(filter_class)
    yield from about_macros_read(filter_class)
    yield from about_deadlines(filter_class)


# How the MTAs spell an address.

_POSTFIX_CHROOT: Final = "/var/spool/postfix"


def spellings(address: Endpoint) -> Iterator[str]:
    """Yield how an address stands in the configuration of MTAs of this machine, where that is not as it stands here.

    >>> from fastmilter.endpoints import parse_endpoint
    >>> print(*spellings(parse_endpoint("inet:8894@127.0.0.1")), sep="\\n")
    Postfix does not take inet:8894@127.0.0.1: it wants smtpd_milters = inet:127.0.0.1:8894
    Sendmail: INPUT_MAIL_FILTER(`fastmilter', `S=inet:8894@127.0.0.1, F=T')
    """
    if address.kind is EndpointKind.FD or address.proxy or address.is_abstract:
        return
    postfix = spelling_for_postfix(address)
    if address.kind in _TCP:
        yield f"Postfix does not take {address}: it wants smtpd_milters = {postfix}"
        host, _, port = postfix.partition(":")[2].rpartition(":")
        yield _in_sendmail_mc(f"{address.kind}:{port}@{host}")
        return
    path = postfix.removeprefix("unix:")
    if path.startswith(_POSTFIX_CHROOT + "/"):
        inside = path.removeprefix(_POSTFIX_CHROOT)
        yield f"Postfix in a chroot at {_POSTFIX_CHROOT} (Debian) wants smtpd_milters = unix:{inside}"
    else:
        yield (
            f"Postfix in a chroot at {_POSTFIX_CHROOT} (Debian) sees only what is below it: there"
            f" smtpd_milters = {postfix} means --listen unix:{_POSTFIX_CHROOT}{path}"
        )
    yield _in_sendmail_mc(postfix)


def _in_sendmail_mc(spelling: str) -> str:
    return f"Sendmail: INPUT_MAIL_FILTER(`fastmilter', `S={spelling}, F=T')"


# Who may connect, and how many.


def about_access(settings: Settings) -> Iterator[str]:
    """Yield where more may connect than is likely meant, or no MTA, and rules that mean nothing."""
    for address in settings.listen:
        if address.kind is EndpointKind.UNIX:
            if not settings.allow_user and _is_open_to_all(address):
                permissions = ", which has no permissions" if address.is_abstract else ""
                yield f"everybody on this machine may connect to {address}{permissions}: see --allow-user"
        elif not settings.allow:
            if address.kind in _TCP and not _is_of_this_machine(address.host):
                yield f"everybody who reaches this machine may connect to {address}: see --allow"
            elif address.proxy:
                # However close the address is: through the proxy others come.
                yield f"everybody who reaches a proxy of --proxy-from may connect to {address} through it: see --allow"
        if address.is_abstract:
            yield f"neither Postfix nor Sendmail can connect to {address}, which has no path: write unix:/path for them"
    kinds = {address.kind for address in settings.listen}
    if settings.allow and kinds == {EndpointKind.UNIX}:
        yield "--allow means nothing on unix sockets: see --allow-user"
    if settings.allow_user and kinds <= _TCP:
        yield "--allow-user means nothing on TCP: see --allow"


def _is_open_to_all(address: Endpoint) -> bool:
    """Tell whether a unix socket will keep no user of this machine out: its mode does not, nor a directory above it."""
    if address.is_abstract:
        return True
    mode = UNIX_MODE if address.mode is None else address.mode
    return bool(mode & stat.S_IWOTH) and why_unreachable(address, _ANYBODY) is None


def _is_of_this_machine(host: str | None) -> bool:
    """Tell whether nobody from elsewhere reaches an address to listen on; a name passes, since it is not looked up.

    >>> [_is_of_this_machine(host) for host in ("127.0.0.2", "::1", "localhost", None, "0::0", "192.0.2.11")]
    [True, True, True, False, False, False]
    """
    if host is None:
        return False
    try:
        return address_of(host).is_loopback
    except ValueError:
        return True


def about_backlog(backlog: int, most: int | None) -> Iterator[str]:
    """Yield that the kernel cuts the queue of connections, if it does; ``most``: its limit, ``None`` if not known."""
    if most is not None and backlog > most:
        yield f"the kernel cuts the backlog of {backlog} to {most}: raise net.core.somaxconn to {backlog}"


# Unix sockets that an MTA cannot reach.

_MTA_USERS: Final = {"postfix": "", "smmta": " (of Sendmail)", "smmsp": " (of Sendmail)", "sendmail": ""}
_AS_ROOT: Final = "; a Sendmail that runs as root can"


@dataclass(frozen=True, slots=True)
class Account:
    """A user that an MTA runs as."""

    name: str
    uid: int
    groups: frozenset[int]

    def may(self, bits: int, mode: int, uid: int, gid: int) -> bool:
        """Tell whether permissions ``mode`` of a file of ``uid`` and ``gid`` give this user ``bits`` (4, 2 and 1).

        >>> Account("postfix", 104, frozenset({107})).may(2, 0o660, 0, 107)
        True
        """
        shift = 6 if self.uid == uid else 3 if gid in self.groups else 0
        return self.uid == 0 or (mode >> shift) & bits == bits


_ANYBODY: Final = Account("anybody", -1, frozenset())
"""A user to whom nothing belongs."""


def mta_accounts(
    look_up: Callable[[str], Any] = pwd.getpwnam, groups_of: Callable[[str, int], list[int]] = os.getgrouplist
) -> list[Account]:
    """Return those users of MTAs that this machine has."""
    found = []
    for name in _MTA_USERS:
        try:
            entry = look_up(name)
        except KeyError:
            continue
        found.append(Account(name, entry.pw_uid, frozenset(groups_of(name, entry.pw_gid))))
    return found


def about_sockets(addresses: Sequence[Endpoint], accounts: Sequence[Account]) -> Iterator[str]:
    """Yield which users of MTAs could not connect to unix sockets that this process would make."""
    for address in addresses:
        if address.kind is not EndpointKind.UNIX or address.is_abstract:
            continue
        for account in accounts:
            why = why_unreachable(address, account)
            if why is not None:
                as_root = "" if account.name == "postfix" else _AS_ROOT
                yield f"user {account.name}{_MTA_USERS[account.name]} cannot connect to {address}: {why}{as_root}"


def why_unreachable(
    address: Endpoint, account: Account, status_of: Callable[[str], os.stat_result] = os.stat
) -> str | None:
    """Return why a user cannot connect to a unix socket, made as ``address`` says by this process; or ``None``."""
    path = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(address.path or ""))), "socket")
    status = None
    for directory in _directories(path):
        try:
            status = status_of(directory)
        except OSError:
            status = None  # not there yet, or not for us to see
            break
        if not account.may(1, status.st_mode, status.st_uid, status.st_gid):
            return (
                f"it may not enter {directory} ({_permissions(status.st_mode, status.st_uid, status.st_gid)}):"
                f" chmod o+x {directory}"
            )
    try:
        uid = os.geteuid() if address.owner is None else user_number(address.owner)
        gid = group_number(address.group) if address.group is not None else _group_of_new_file(status)
    except ConfigError:
        return None  # there is no such user or group: no warning, but what the server does not start for
    mode = UNIX_MODE if address.mode is None else address.mode
    if account.may(2, mode, uid, gid):
        return None
    group = f"group={account.name}" if address.owner is None else f"owner={address.owner}&group={account.name}"
    return f"it has {_permissions(mode, uid, gid)}: write unix:{address.path}?mode=0660&{group}"


def about_health(settings: Settings) -> Iterator[str]:
    """Yield why /healthz could not connect to the first address as an MTA does, and would never be well."""
    address = settings.listen[0]
    if settings.metrics is None or address.kind is EndpointKind.FD:
        return
    if address.kind in _TCP:
        host = parse_endpoint(spelling_for_postfix(address)).host or ""
        try:
            source = address_of(host)  # who connects to an address of this machine has the same one
        except ValueError:
            return  # a name
        if not Rules(settings.allow, ()).allow_address(host):
            yield f"/healthz connects from {source}, which is in no network of --allow, and will always fail: add it"
        return
    account = _account_of_workers(settings)
    if settings.allow_user and account.uid not in settings.allow_user:
        yield f"/healthz connects as user {account.name}, who is none of --allow-user, and will always fail: add it"
    elif not address.is_abstract and (why := why_unreachable(address, account)) is not None:
        yield f"/healthz connects as user {account.name} and cannot, so it will always fail: {why}"


def _account_of_workers(settings: Settings) -> Account:
    """Return whom the workers and the monitor run as."""
    identity = identity_for(settings.user, settings.group, allow_root=True)
    if identity is not None:
        return Account(identity.name, identity.uid, frozenset(identity.groups))
    return Account(str(os.geteuid()), os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))


def _directories(path: str) -> list[str]:
    """Return the directories on the way to a file, the root first."""
    found = []
    while (above := os.path.dirname(path)) != path:
        found.append(above)
        path = above
    return found[::-1]


def _group_of_new_file(directory: os.stat_result | None) -> int:
    if directory is not None and directory.st_mode & stat.S_ISGID:
        return directory.st_gid
    return os.getegid()


def _permissions(mode: int, uid: int, gid: int) -> str:
    owner: str | int
    group: str | int
    try:
        owner = pwd.getpwuid(uid).pw_name
    except KeyError:
        owner = uid
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = gid
    return f"mode {stat.S_IMODE(mode):04o}, owner {owner}, group {group}"


# Macros.

_SENT_BY_DEFAULT: Final = {name: step for step, names in reversed(POSTFIX_MACROS.items()) for name in names}
"""Every macro that Postfix sends unasked, and the first step where it does."""


def about_requested_macros(filter_class: type[Filter[Any]]) -> Iterator[str]:
    """Yield which of the macros that a class asks for Postfix sends by request only, elsewhere, or never.

    What it sends at an earlier step unasked is there all the same: ``self.macros`` looks back.
    """
    requested = _requested(filter_class)
    for step, names in requested.items():
        here = STEP_NUMBERS[step]
        wanted = [name for name in names if STEP_NUMBERS[_SENT_BY_DEFAULT.get(name, Step.UNKNOWN)] > here]
        unknown = [name for name in wanted if name not in POSTFIX_KNOWN_MACROS]
        if unknown:
            yield f"Postfix does not have {' '.join(unknown)}, asked for at {step}: read it with self.macros.get(name)"
        by_request = []
        for name in (name for name in wanted if name in POSTFIX_KNOWN_MACROS):
            first = POSTFIX_KNOWN_MACROS[name]
            if STEP_NUMBERS[first] > here:
                yield f"Postfix has no value of {name} at {step} yet: ask for it at {first}"
            elif here < STEP_NUMBERS[Step.END_OF_HEADERS] or name in POSTFIX_CONTENT_MACROS:
                by_request.append(name)
            elif not any(name in requested.get(earlier, ()) for earlier in _steps_between(first, step)):
                yield f"Postfix does not send {name} at {step}: ask for it at {first}, from where its value stays"
        if by_request:
            yield (
                f"Postfix does not send {' '.join(by_request)} at {step} by default, only because the filter asks"
                f" for it: where something in between drops that request (SETSYMLIST), write"
                f" {_setting(step, by_request)}"
            )


def _requested(filter_class: type[Filter[Any]]) -> dict[Step, tuple[str, ...]]:
    """Return the macros that a class itself asks for, by step, in the order of the steps."""
    asked = {str(step): names for step, names in filter_class.request_macros.items()}
    return {
        step: tuple(dict.fromkeys(normalise_macro(name) for name in asked[step])) for step in STEPS if step in asked
    }


def _steps_between(first: Step, last: Step) -> list[Step]:
    """Return the steps from ``first`` to the one before ``last``."""
    return list(STEPS)[STEP_NUMBERS[first] : STEP_NUMBERS[last]]


def _setting(step: Step, names: Collection[str]) -> str:
    return f"{POSTFIX_MACRO_SETTINGS[step]} = {' '.join((*POSTFIX_MACROS.get(step, ()), *names))} in main.cf"


class MacroRead(NamedTuple):
    """A macro that a function reads by a name that stands in it."""

    name: str
    copes: bool
    """Whether the function is content without it: ``get``, ``in``, ``except KeyError``."""
    is_at_once: bool
    """Whether it is read when the function runs, not in one that is made there and may run later."""


_STEP_OF_CALLBACK: Final = {callback_name(step): step for step in STEPS} | {"on_rejected_rcpt": Step.RCPT}
_MOST_WRAPPERS: Final = 20


def about_macros_read(filter_class: type[Filter[Any]]) -> Iterator[str]:
    """Yield which macros the code of a class reads that Postfix does not send, or not yet in that callback.

    What the class asks for is sent, from the step on where it does. When a helper is called is not known.
    """
    first_sent = dict(_SENT_BY_DEFAULT)
    for step, names in _requested(filter_class).items():
        for name in names:
            first_sent[name] = min(step, first_sent.get(name, step), key=STEP_NUMBERS.__getitem__)
    seen: set[str] = set()
    for owner in filter_class.__mro__[: filter_class.__mro__.index(Filter)]:
        for attribute, value in vars(owner).items():
            for read in (read for code in _codes(value) for read in macros_read_by(code)):
                here = _STEP_OF_CALLBACK.get(attribute) if read.is_at_once else None
                warning = None if read.name in seen else _about_macro(read, here, first_sent.get(read.name))
                if warning is not None:
                    seen.add(read.name)
                    where = getattr(value, "__qualname__", f"{owner.__qualname__}.{attribute}")
                    yield f"{where} reads the macro {read.name}, which Postfix does not {warning}"


def _about_macro(read: MacroRead, step: Step | None, sent: Step | None) -> str | None:
    """Return what is wrong with reading a macro at ``step``, ``None`` if it is not known; ``sent``: from where on."""
    known = POSTFIX_KNOWN_MACROS.get(read.name)
    if known is None:  # perhaps another MTA has it
        return None if read.copes or sent is not None else f"have: use self.macros.get({read.name!r})"
    if sent is None:
        return f'send by default: write request_macros = {{"{known}": ["{read.name}"]}}'
    if not read.copes and STEP_NUMBERS[known] > STEP_NUMBERS[sent]:
        sent = known  # it is on the list of an earlier step, without a value
    if step is None or STEP_NUMBERS[step] >= STEP_NUMBERS[sent]:
        return None
    is_there = STEP_NUMBERS[step] >= STEP_NUMBERS[known]
    asking = f', or write request_macros = {{"{step}": ["{read.name}"]}}' if is_there else ""
    return f"send before {sent}: read it there or later{asking}"


def _codes(value: object) -> Iterator[CodeType]:
    """Yield the code of a function, and of those that decorators have wrapped (``functools.wraps``)."""
    for _ in range(_MOST_WRAPPERS):
        code = getattr(value, "__code__", None)
        if isinstance(code, CodeType):
            yield code
        value = getattr(value, "__wrapped__", None)
        if value is None:
            break


def macros_read_by(code: CodeType) -> Iterator[MacroRead]:
    """Yield the macros that a function reads, from ``macros`` of anything or a local name for that.

    >>> def on_rcpt(self): return self.macros["client_port"], self.connection.macros.get("{i}")
    >>> [(name, copes) for name, copes, _ in macros_read_by(on_rcpt.__code__)]
    [('{client_port}', False), ('i', True)]
    """
    steps = list(_instructions(code))
    aliases = _aliases_of_macros(steps)
    named: list[str | None] = [None] * 2  # what the last two instructions name
    found, looked_for, constant = [], set(), None
    for kind, value in steps:
        name = "macros" if kind == "LOAD_FAST" and value in aliases else value if kind == "LOAD_NAMED" else None
        if kind == "LOAD_CONST" and isinstance(value, str) and value:
            constant = normalise_macro(value)
            if named[1] == "macros" or named == ["macros", "get"]:
                found.append((constant, named[1] == "get"))
        elif kind.startswith("CONTAINS_OP") and named[1] == "macros":
            looked_for.add(constant)
        # Constants are no names, lest a text "macros" be taken for one.
        named = [named[1], name]
    catches = "KeyError" in code.co_names
    for text, copes in found:
        yield MacroRead(text, copes or catches or text in looked_for, True)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            # Comprehensions are functions of their own (before Python 3.12); an expression of a generator is read here.
            is_here = inner.co_name in _COMPREHENSIONS
            for text, copes, is_at_once in macros_read_by(inner):
                yield MacroRead(text, copes or catches, is_at_once and is_here)


_COMPREHENSIONS: Final = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


def _instructions(code: CodeType) -> Iterator[tuple[str, Any]]:
    """Yield the instructions of a function that matter here, those that do two things as two; and ``""`` for others."""
    for instruction in dis.get_instructions(code):
        name, value = instruction.opname, instruction.argval
        if name.startswith(("LOAD_ATTR", "LOAD_METHOD")):
            yield "LOAD_NAMED", value
        elif "_FAST" in name:
            kinds = re.findall(r"(LOAD|STORE)_FAST", name)
            values = value if isinstance(value, tuple) else (value,) * len(kinds)
            yield from ((f"{kind}_FAST", each) for kind, each in zip(kinds, values, strict=False))
        elif name != "CACHE":
            yield name, value


def _aliases_of_macros(steps: Sequence[tuple[str, Any]]) -> set[str]:
    """Return the local names that stand for nothing but ``macros`` of something (``m = self.macros``)."""
    of_macros: set[str] = set()
    others: set[str] = set()
    for (kind_before, before), (kind, name) in pairwise(steps):
        if kind == "STORE_FAST":
            (of_macros if (kind_before, before) == ("LOAD_NAMED", "macros") else others).add(name)
    return of_macros - others


# Deadlines.


class _TimeOut(NamedTuple):
    """How long an MTA waits at some steps unless told otherwise, in seconds, and how it is told."""

    mta: str
    seconds: float
    steps: frozenset[Step]
    setting: str
    margin: float
    """By how much it must be above the deadline, in seconds."""


_END: Final = frozenset({Step.END_OF_MESSAGE})
_POSTFIX_HINT: Final = ", and longer only where PROGRESS reaches it"
_TIME_OUTS: Final = (
    _TimeOut("Sendmail", SENDMAIL_ANSWER_S, frozenset(STEPS) - _END, "T=R:{}s in its INPUT_MAIL_FILTER", 5),
    _TimeOut("Sendmail", SENDMAIL_END_S, _END, "T=E:{}s in its INPUT_MAIL_FILTER", 20),
    _TimeOut(
        "Postfix", POSTFIX_COMMAND_TIMEOUT_S, frozenset(STEPS) - _END - CONTENT_STEPS, "milter_command_timeout = {}s", 5
    ),
    _TimeOut("Postfix", POSTFIX_CONTENT_TIMEOUT_S, CONTENT_STEPS | _END, "milter_content_timeout = {}s", 20),
)


def about_deadlines(filter_class: type[Filter[Any]]) -> Iterator[str]:
    """Yield which deadlines of a class end after the MTA has given up, and which setting of the MTA is to be raised."""
    own = Deadlines(filter_class.deadline).own
    if not own:
        return
    if not (filter_class.blocking or filter_class._fastmilter_plan.is_async):
        yield (
            f"the deadline of {filter_class.__name__} means nothing, since its callbacks run in the loop of the worker:"
            f" set blocking = True or write async def"
        )
        return
    waited_for = {step: own[step] for step in _waited_for(filter_class) if step in own}
    endless = [step for step, seconds in waited_for.items() if math.isinf(seconds)]
    if endless:
        yield (
            f"the deadline at {', '.join(endless)} never ends, and no MTA waits for ever: write a number of seconds,"
            f" below the {SENDMAIL_ANSWER_S:g} s of Sendmail and {POSTFIX_COMMAND_TIMEOUT_S:g} s of Postfix for an"
            f" answer, or the {SENDMAIL_END_S:g} s of both at the end of the message"
        )
    for time_out in _TIME_OUTS:
        above = {
            step: seconds
            for step, seconds in waited_for.items()
            if step in time_out.steps and time_out.seconds <= seconds < math.inf
        }
        if above:
            told = ", ".join(f"{step} ({seconds:g} s)" for step, seconds in above.items())
            setting = time_out.setting.format(math.ceil(max(above.values()) + time_out.margin))
            hint = _POSTFIX_HINT if time_out.mta == "Postfix" else ""
            yield (
                f"the deadline at {told} is not below the {time_out.seconds:g} s that {time_out.mta} waits by"
                f" default{hint}: set {setting}, or lower the deadline"
            )


def _waited_for(filter_class: type[Filter[Any]]) -> Iterator[Step]:
    """Yield the steps where the MTA waits for callbacks: for that of the step, or those before it without an answer."""
    plan = filter_class._fastmilter_plan
    has_callback = False
    for step in STEPS:
        names = {callback_name(step)} | ({"on_rejected_rcpt"} if step is Step.RCPT else set())
        has_callback = bool(names & plan.overridden) or (has_callback and step is not Step.UNKNOWN)
        if step not in plan.wish.never | plan.wish.no_reply:
            if has_callback:
                yield step
            has_callback = False
