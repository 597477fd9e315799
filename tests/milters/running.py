"""Real milters as processes of their own, each at an address of its own, in the foreground."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.mta.lab.environment import LabError, free_port, program, wait_until

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FILTERS = HERE / "filters"
DEBIAN_PYTHON = "/usr/bin/python3"

DKIM_DOMAIN = "signed.test"
DKIM_SELECTOR = "sel"
DMARC_DOMAIN = "strict.test"
AUTHSERV = "mx.test"


def missing_for(name: str) -> list[str]:
    """What is missing to run a milter, in words."""
    if name.startswith("opendkim"):
        return [f"{tool} is not installed" for tool in ("opendkim", "openssl") if program(tool) is None]
    if name == "opendmarc":
        return [] if program("opendmarc") else ["opendmarc is not installed"]
    if name == "c":
        reasons = [] if program("cc") else ["there is no C compiler"]
        return reasons + ([] if Path("/usr/include/libmilter/mfapi.h").exists() else ["libmilter-dev is not installed"])
    if name == "pymilter":
        done = subprocess.run([DEBIAN_PYTHON, "-c", "import Milter"], capture_output=True, check=False)
        return [] if done.returncode == 0 else ["python3-milter is not installed"]
    return []


def missing_for_transport(transport: str) -> list[str]:
    """What is missing to use a transport, in words."""
    if transport == "inet6":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            return [f"there is no IPv6 loopback: {error.strerror}"]
    return []


class Milters:
    """Starts each milter at each kind of address once, and ends them all."""

    def __init__(self) -> None:
        # Paths of unix sockets are short.
        self.directory = Path(tempfile.mkdtemp(prefix="fm-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._addresses: dict[tuple[str, str], str] = {}
        self._commands: dict[str, Callable[[str], list[str]]] = {
            "opendkim": self._opendkim_sign,
            "opendkim-verify": self._opendkim_verify,
            "opendmarc": self._opendmarc,
            "c": self._c,
            "pymilter": lambda address: [DEBIAN_PYTHON, str(FILTERS / "standard_pymilter.py"), address],
            "fastmilter": self._fastmilter,
        }

    def __enter__(self) -> Milters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for path in self.directory.iterdir():
            path.unlink()
        self.directory.rmdir()

    def address(self, name: str, transport: str) -> str:
        """The address of a milter, started if it does not run yet."""
        if (name, transport) not in self._addresses:
            self._addresses[name, transport] = self._start(name, transport)
        return self._addresses[name, transport]

    def log(self, name: str) -> str:
        """What a milter said, at all its addresses."""
        return "".join(path.read_text(errors="replace") for path in self.directory.glob(f"{name}.*.log"))

    def _start(self, name: str, transport: str) -> str:
        port = free_port()
        spellings = {
            "inet": f"inet:{port}@127.0.0.1",
            "inet6": f"inet6:{port}@::1",
            "unix": f"unix:{self.directory}/{name}.sock",
        }
        address = spellings[transport]
        command = self._commands[name](address)
        # Milters that come from the system find the system's libraries, whatever the environment of this Python.
        environment = {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "PYTHONPATH": str(ROOT)}
        if name == "pymilter":
            del environment["PYTHONPATH"]
        with (self.directory / f"{name}.{transport}.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._processes.append(process)

        def listens() -> bool:
            if process.poll() is not None:
                raise LabError(f"{name} ended with status {process.returncode}:\n{self.log(name)}")
            with contextlib.suppress(OSError):
                return _connects(transport, address, port)
            return False

        wait_until(listens, f"{name} to listen at {address}")
        return address

    # -- the milters -----------------------------------------------------------------------------------------------

    def _file(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def _openssl(self, *arguments: str) -> bytes:
        return subprocess.run(["openssl", *arguments], capture_output=True, check=True, cwd=self.directory).stdout

    @property
    def dkim_record(self) -> str:
        """The TXT record that publishes the key, made on first use."""
        key = self.directory / "key.pem"
        if not key.exists():
            self._openssl("genrsa", "-out", str(key), "2048")
        text = self._openssl("rsa", "-in", str(key), "-pubout").decode()
        public = "".join(line for line in text.splitlines() if not line.startswith("-"))
        return f"v=DKIM1; k=rsa; p={public}"

    def _opendkim(self, settings: str, purpose: str, address: str) -> list[str]:
        user = "UserID root\n" if os.geteuid() == 0 else ""
        config = self._file(f"opendkim-{purpose}.conf", f"{settings}{user}Syslog no\n")
        return [program("opendkim") or "", "-f", "-x", str(config), "-p", address]

    def _opendkim_sign(self, address: str) -> list[str]:
        assert self.dkim_record
        settings = (
            f"Mode s\nDomain {DKIM_DOMAIN}\nSelector {DKIM_SELECTOR}\nKeyFile {self.directory}/key.pem\n"
            "RequireSafeKeys no\nCanonicalization relaxed/simple\nInternalHosts 192.0.2.0/24\n"
        )
        return self._opendkim(settings, "sign", address)

    def _opendkim_verify(self, address: str) -> list[str]:
        keys = self._file("keys", f"{DKIM_SELECTOR}._domainkey.{DKIM_DOMAIN} {self.dkim_record}\n")
        settings = f"Mode v\nTestPublicKeys {keys}\nAuthservID {AUTHSERV}\nAlwaysAddARHeader yes\n"
        return self._opendkim(settings, "verify", address)

    def _opendmarc(self, address: str) -> list[str]:
        records = self._file("dmarc-records", f"_dmarc.{DMARC_DOMAIN} v=DMARC1; p=reject\n")
        config = self._file(
            "opendmarc.conf",
            f"AuthservID {AUTHSERV}\nTrustedAuthservIDs {AUTHSERV}\nRejectFailures true\nTestDNSData {records}\n",
        )
        user = ["-u", "root"] if os.geteuid() == 0 else []
        return [program("opendmarc") or "", "-f", "-c", str(config), *user, "-p", address]

    def _c(self, address: str) -> list[str]:
        binary = self.directory / "standard"
        if not binary.exists():
            source = str(FILTERS / "standard.c")
            command = ["cc", "-O1", "-Wall", "-Werror", "-o", str(binary), source, "-lmilter", "-lpthread"]
            subprocess.run(command, check=True)
        return [str(binary), address]

    def _fastmilter(self, address: str) -> list[str]:
        serve = [sys.executable, "-m", "fastmilter", "serve", f"{FILTERS}/standard.py:Standard"]
        return [*serve, "--workers", "1", "--listen", address, "--allow-root"]


def _connects(transport: str, address: str, port: int) -> bool:
    if transport == "unix":
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(address.partition(":")[2])
    else:
        socket.create_connection(("::1" if transport == "inet6" else "127.0.0.1", port), timeout=1).close()
    return True
