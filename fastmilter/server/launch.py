"""``fastmilter.serve()``: the server, started from Python.

The class is not served by this process but by a real master, started as ``python -m fastmilter serve``: it imports the
class by its name, so that reload and upgrade work as they do from the command line, and this program and its threads
stay out of it.
"""

import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from fastmilter.errors import ConfigError

if TYPE_CHECKING:
    from fastmilter.filter import Filter


def serve(
    filter_class: "type[Filter[Any]] | str",
    *,
    listen: str | Sequence[str] | None = None,
    workers: int | str | None = None,
    options: Mapping[str, Any] | None = None,
    **settings: object,
) -> int:
    """Serve a filter until it is told to stop; return the exit status of ``fastmilter serve``.

    ``filter_class`` is the class, or a TARGET as on the command line. ``options`` is what ``worker_started`` gets, in
    values that JSON can hold; its keys count before those of the ``[filter]`` table of a configuration file.
    ``settings`` are the other options of the command line, with underscores: ``config="fm.toml"``,
    ``idle_timeout=600``. Variables of the environment count as they do on the command line.

    In the main thread the signals of the server (TERM and INT to stop, HUP to reload, ...) are passed on to it, unless
    this program has handlers of its own. When this process dies, the server drains and stops.

    Raises ``ConfigError`` if the class cannot be imported by its name, or if an argument will not do.
    """
    import subprocess  # here, as below: importing fastmilter stays light

    from fastmilter.server.load import importing

    if importing():
        raise ConfigError("serve() was called by the import of the filter: call it under if __name__ == '__main__'")
    target = filter_class if isinstance(filter_class, str) else name_of(filter_class)
    switches = _switches({"listen": listen, "workers": workers, **settings})
    lifeline, ours = os.pipe()
    command = [sys.executable, "-m", "fastmilter", "serve", *switches, "--lifeline", str(lifeline), "--", target]
    try:
        with _Forwarder() as forwarder:
            # A process group of its own: else a Ctrl-C would reach the server twice, from the terminal and from us.
            master = subprocess.Popen(command, env=_environment(options), pass_fds=(lifeline,), process_group=0)
            os.close(lifeline)
            lifeline = -1
            forwarder.forward_to(master.send_signal)
            status = master.wait()  # until the server stops, which is what the caller asked for
            return status if status >= 0 else 128 - status  # as a shell says that a signal ended it
    finally:
        os.close(ours)
        if lifeline >= 0:
            os.close(lifeline)


def name_of(filter_class: type) -> str:
    """Return the TARGET by which another process can import a class; ``ConfigError`` if there is none."""
    module_name, qualname = filter_class.__module__, filter_class.__qualname__
    module = sys.modules.get(module_name)
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found is not filter_class:
        raise ConfigError(
            f"{module_name}.{qualname} cannot be imported by that name; a server needs a class at the top of a module"
        )
    if module_name != "__main__":
        return f"{module_name}:{qualname}"
    spec = getattr(module, "__spec__", None)
    if spec is not None:  # python -m package.module
        return f"{spec.name}:{qualname}"
    path = getattr(module, "__file__", None)
    if path is None or not os.path.isfile(path):
        raise ConfigError(f"{qualname} is in no file; a server needs a class that another process can import")
    return f"{os.path.abspath(path)}:{qualname}"


def _switches(settings: Mapping[str, object]) -> list[str]:
    """Return settings as they are written on the command line; each is read once here, for its errors."""
    from fastmilter.server.options import OPTIONS

    by_name = {option.name: option for option in OPTIONS if not option.positional}
    switches: list[str] = []
    for name, value in settings.items():
        if name not in by_name:
            close = difflib.get_close_matches(name, by_name, n=1)
            raise ConfigError(f"serve() has no option {name!r}" + (f"; did you mean {close[0]}?" if close else ""))
        if value is None or value is False:
            continue
        option = by_name[name]
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        try:
            read = option.parse(value)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        if option.flag:
            switches += [option.switch] if read else []
        elif option.repeat:
            texts = [value] if isinstance(value, str) else value
            assert isinstance(texts, Sequence)
            switches += [f"{option.switch}={text}" for text in texts]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            switches.append(f"{option.switch}={','.join(map(str, value))}")
        else:
            switches.append(f"{option.switch}={value}")
    return switches


def _environment(options: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the environment of the master: the same places to import from as here, and the filter's options."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    if options is None:
        return environment
    import json

    for key, value in options.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"options[{key!r}] cannot be handed to another process: {error}") from None
    environment["FASTMILTER_FILTER"] = json.dumps(dict(options))
    return environment


class _Forwarder:
    """Passes signals on to the master while it lives; keeps those that come before it is born."""

    def __init__(self) -> None:
        self._send: Callable[[int], None] | None = None
        self._early: list[int] = []
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_Forwarder":
        from fastmilter.server.signals import MASTER_SIGNALS

        if threading.current_thread() is not threading.main_thread():
            return self
        for number in MASTER_SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._former[number] = signal.signal(number, self._pass_on)
        return self

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if self._send:
            self._send(number)
        else:
            self._early.append(number)

    def forward_to(self, send: Callable[[int], None]) -> None:
        self._send = send
        for number in self._early:
            send(number)

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
