"""``fastmilter serve TARGET``: the server."""

import argparse
import faulthandler
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from fastmilter.commands import EXIT_OK, set_up_logging
from fastmilter.commands.options import add_options
from fastmilter.endpoints import Endpoint, EndpointKind, parse_endpoint
from fastmilter.errors import ConfigError
from fastmilter.plan import build_options, describe
from fastmilter.server.advice import spellings, warnings_about_filter, warnings_about_settings
from fastmilter.server.descriptors import provide
from fastmilter.server.listen import UNIX_MODE, spelling_for_postfix
from fastmilter.server.load import load_filter
from fastmilter.server.models import describe_model, make_worker
from fastmilter.server.obstacles import refuse_obstacles
from fastmilter.server.options import OPTIONS
from fastmilter.server.peers import Network, address_of
from fastmilter.server.privileges import drop, identity_for
from fastmilter.server.proxy_header import LOCAL_HEADER
from fastmilter.server.settings import Settings, load_settings
from fastmilter.server.supervisor import Supervisor
from fastmilter.server.upgrade import can_take_over

SIGNALS: Final = """\
signals to the master:
  TERM, INT   finish the messages under way and stop; the second time, stop now
  QUIT        stop now
  HUP         reload: new workers with the code and the configuration of now, then the old ones leave
  TTIN, TTOU  one worker more, one less
  USR1        open the log file anew
  USR2        upgrade: the master becomes the fastmilter that is installed now, and reloads
"""

PROBE_S: Final = 1.0
"""How long making a connection may take for /healthz, and as long again the negotiation."""

_WARNING: Final = "warning: "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of the table to the parser of the subcommand."""
    add_options(parser, OPTIONS, epilog=f"{SIGNALS}\n{parser.epilog}")
    # How fastmilter.serve() ties the server to its own life: a pipe whose other end it holds.
    parser.add_argument("--lifeline", type=int, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Serve, or check; return the exit status."""
    command_line = {option.name: getattr(arguments, option.name) for option in OPTIONS}

    def read() -> Settings:
        return load_settings(command_line, os.environ)

    settings = read()
    log_as(settings)
    if settings.check_config:
        for line in check(settings):
            print(line)
        consent = can_take_over(os.environ)  # asked by a master that wants to become this version of it
        if consent is not None:
            provide(settings)
            print(consent)
        return EXIT_OK
    faulthandler.enable()  # a crash in compiled code leaves a traceback too; inherited by the workers
    return Supervisor(
        settings, make_worker, reread=read, log_as=log_as, lifeline=arguments.lifeline, probe=negotiate_with
    ).run()


def log_as(settings: Settings) -> None:
    """Log as the settings say; ``ConfigError`` if syslog cannot be reached."""
    syslog = None if settings.check_config else settings.syslog
    set_up_logging(settings.log_level, as_json=settings.log_format == "json", syslog=syslog)


def negotiate_with(address: Endpoint, proxies: tuple[Network, ...]) -> None:
    """Negotiate with a server on this machine as an MTA does, or as one of ``proxies``; raises what went wrong."""
    from fastmilter.client import Client, Timeouts  # here: only the monitor needs it

    where = parse_endpoint(spelling_for_postfix(address))
    with ExitStack() as stack:
        way: Endpoint | socket.socket = where
        if address.proxy:
            way = stack.enter_context(socket.create_connection((where.host, where.port), PROBE_S))
            if any(address_of(way.getsockname()[0]) in network for network in proxies):
                way.sendall(LOCAL_HEADER)
        stack.enter_context(Client(way, timeouts=Timeouts(connect=PROBE_S, command=PROBE_S)))


def check(settings: Settings) -> Iterator[str]:
    """Load everything as a worker would, and yield lines that say what the server would do.

    Raises ``ConfigError`` at the first thing that cannot work. The filter's code is imported and one object is made;
    ``worker_started`` is not called, since it may open connections.
    """
    identity = identity_for(settings.user, settings.group, allow_root=settings.allow_root)
    refuse_obstacles(settings)  # as the user that will listen, whom the filter does not run as; so with the warnings
    warnings = list(warnings_about_settings(settings))
    if identity is not None:
        drop(identity)  # the code of the filter runs as it will, or not at all
    filter_class = load_filter(settings.target)
    build_options(filter_class, settings.filter_options)
    try:
        filter_class()
    except Exception as error:
        raise ConfigError(f"{filter_class.__name__}() cannot be made: {type(error).__name__}: {error}") from error
    yield f"filter: {settings.target}"
    if settings.config is not None:
        yield f"configuration file: {settings.config}"
    for address in settings.listen:
        yield from describe_address(address, settings)
    if settings.user is not None:
        yield f"runs as: {settings.user}"
    yield f"workers: {settings.workers}"
    yield f"callbacks run: {describe_model(filter_class, settings)}"
    described = describe(filter_class)
    yield "would negotiate:"
    yield from (f"  {line}" for line in described if not line.startswith(_WARNING))
    yield from (line for line in described if line.startswith(_WARNING))
    warnings += [*warnings_about_filter(filter_class), *settings.warnings]
    yield from (_WARNING + warning for warning in warnings)
    yield "the configuration can be used"


def describe_address(address: Endpoint, settings: Settings) -> Iterator[str]:
    """Yield where and how the server would listen, and how MTAs of this machine spell that."""
    if address.kind is EndpointKind.FD and address.fd is None:
        yield "listens on: the sockets that systemd has opened"
        return
    if address.proxy:
        yield f"listens on: {address} (for the proxies of --proxy-from, which MTAs connect to)"
        return
    if address.kind is EndpointKind.FD or address.is_abstract:
        yield f"listens on: {address}"
        return
    yield f"listens on: {address} (in smtpd_milters of Postfix: {spelling_for_postfix(address)})"
    if address.kind is EndpointKind.UNIX:
        mode = UNIX_MODE if address.mode is None else address.mode
        owner = f"owner {address.owner}, " if address.owner else ""
        starter = "runs" if settings.user is None else "starts"
        yield f"  with mode {mode:04o}, {owner}group {address.group or f'of the user that {starter} it'}"
    yield from (f"  {line}" for line in spellings(address))
