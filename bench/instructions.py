"""Counts the instructions of a worker per message with valgrind's callgrind: the same on every run of a busy machine.

    python -m bench.instructions [--filter CLASS] [--messages-per-connection M] [--functions N]

One worker serves a class of ``bench/filters.py`` on a unix socket, without a master, under callgrind; the load
generator plays it 200 and then 700 messages on 10 connections, and the difference is divided by 500. The kernel's work
is not counted: for that there are the system calls of the benchmark. ``--functions`` lists those that take most,
without what they call.
"""

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.programs import ROOT, BenchFailed, build, program
from fastmilter.server import channel
from fastmilter.server.load import load_filter
from fastmilter.server.models import make_worker
from fastmilter.server.settings import load_settings
from fastmilter.server.slots import Slots

FILTERS = ROOT / "bench" / "filters.py"
FEW, MANY = 200, 700
LOAD_S = 300.0


def serve(target: str, path: str, load: list[str]) -> int:
    """Be the worker, until ``load`` has ended; return its exit status."""
    settings = load_settings({"target": target, "listen": [f"unix:{path}"], "log_level": "error"}, {})
    filter_class = load_filter(settings.target)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(512)
    listener.setblocking(False)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    slots = Slots(4)
    slots.claim(0, pid=os.getpid(), generation=1)
    child = os.fork()
    if child == 0:
        ours.close()
        theirs.settimeout(LOAD_S)
        theirs.recv(1024)  # the worker is ready
        status = subprocess.run(load, stdout=subprocess.DEVNULL, timeout=LOAD_S, check=False).returncode
        theirs.send(channel.encode(channel.StopNow()))
        os._exit(status)
    theirs.close()
    make_worker(filter_class, settings, [listener], ours, slots, 0).run()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count(filter_name: str, per_connection: int, messages: int, folder: Path) -> dict[str, int]:
    """Play ``messages`` under callgrind; return what each function took."""
    path, out = folder / "worker.sock", folder / f"callgrind.{messages}"
    path.unlink(missing_ok=True)
    played = [program("load"), "--address", f"unix:{path}", "--connections", "10", "--total", str(messages)]
    played += ["--messages-per-connection", str(per_connection)]
    command = [
        "valgrind",
        "--tool=callgrind",
        f"--callgrind-out-file={out}",
        sys.executable,
        "-m",
        "bench.instructions",
    ]
    command += ["--serve", f"{FILTERS}:{filter_name}", str(path), *played]
    same = {**os.environ, "PYTHONHASHSEED": "0"}  # else dictionaries collide otherwise in each run
    done = subprocess.run(command, cwd=ROOT, env=same, capture_output=True, text=True, timeout=2 * LOAD_S, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"the worker under callgrind failed:\n{done.stderr[-2000:]}")
    return by_function(out)


def by_function(out: Path) -> dict[str, int]:
    """Return the instructions of each function without what it calls, and their sum as ``total``."""
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    function, is_call = "", False
    for line in out.read_text().splitlines():
        if named := re.match(r"c?fn=\((\d+)\)(?: (.*))?", line):
            if named[2]:
                names[named[1]] = named[2]
            if line.startswith("fn="):
                function = names[named[1]]
        elif line.startswith("calls="):
            is_call = True  # the next line is what the callee cost, which stands there too
        elif numbers := re.match(r"[-+*\d]\S* (\d+)$", line):
            if not is_call:
                counts[function] = counts.get(function, 0) + int(numbers[1])
            is_call = False
    counts["total"] = sum(counts.values())
    return counts


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        return serve(sys.argv[2], sys.argv[3], sys.argv[4:])
    parser = argparse.ArgumentParser(
        prog="python -m bench.instructions", description="Counts the instructions of a worker per message."
    )
    parser.add_argument("--filter", default="Typical", help="class of bench/filters.py (Typical)")
    parser.add_argument("--messages-per-connection", type=int, default=1, metavar="M", help="(1)")
    parser.add_argument("--functions", type=int, default=0, metavar="N", help="list so many")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is missing: apt-get install valgrind")
    try:
        build()
        with tempfile.TemporaryDirectory() as folder:
            few, many = (
                count(options.filter, options.messages_per_connection, messages, Path(folder))
                for messages in (FEW, MANY)
            )
    except BenchFailed as error:
        sys.exit(str(error))
    each = {name: (number - few.get(name, 0)) / (MANY - FEW) for name, number in many.items()}
    kept = f"{options.filter}, {options.messages_per_connection} messages a connection"
    print(f"{kept}: {each.pop('total'):.0f} instructions a message")
    for name, number in sorted(each.items(), key=lambda item: -item[1])[: options.functions]:
        print(f"{number:10.0f}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
