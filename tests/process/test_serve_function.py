"""``fastmilter.serve()``: a server started from Python."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import fastmilter
from fastmilter.errors import ConfigError
from fastmilter.server.launch import name_of, serve
from tests.process.harness import FILTER, PATIENCE_S, Server, begin, complete, is_gone, title, wait_until, whole_message

PROGRAM = (
    FILTER
    + """
    @classmethod
    def worker_started(cls, options):
        print("options", options, flush=True)

if __name__ == "__main__":
    import sys
    options = {"colour": "red"}
    status = fastmilter.serve(Tagger, listen="inet:0@127.0.0.1", workers=2, options=options, drain_stop=(1, 2, 3))
    print("status", status, flush=True)
    sys.exit(status)
"""
)


class Program(Server):
    """A program that calls ``serve``; its own process is not the master."""

    master = 0

    def begin(self, source: str = PROGRAM, *words: str) -> None:
        self.filter.write_text(source)
        self.start(target="", listen=(), command=words or (str(self.filter),), wait=False)
        self.wait_ready(2)
        (child,) = psutil.Process(self.pid).children()
        self.master = child.pid

    def kill_all(self) -> None:
        super().kill_all()
        if self.master and title(self.master).startswith("fastmilter: master"):
            os.kill(self.master, signal.SIGKILL)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path)
    yield program
    program.kill_all()
    print(program.log_file.read_text())


def test_an_upgrade_is_passed_on_and_the_server_still_hangs_on_the_program(program: Program) -> None:
    program.begin()
    program.send(signal.SIGUSR2)
    program.wait_log("upgrade: the master is new, 2 workers serve on")
    program.wait_log("generation 2 serves")
    program.wait_log(r"options \{'colour': 'red'\}", 4)
    os.kill(program.pid, signal.SIGKILL)
    program.finish()
    program.wait_log("the program that started this server is gone")
    wait_until(lambda: is_gone(program.master), "the master leaves")


def test_a_program_serves_the_class_it_defines(program: Program) -> None:
    program.begin()
    assert title(program.master) == "fastmilter: master [Tagger]"
    program.wait_log(r"options \{'colour': 'red'\}", 2)
    with program.client() as client:
        assert whole_message(client)["X-Version"] == "one"
    assert program.stop() == 0
    assert "status 0" in program.log()
    assert is_gone(program.master)


def test_signals_to_the_program_mean_the_server(program: Program) -> None:
    program.begin()
    program.send(signal.SIGTTIN)
    program.wait_ready(3)
    program.filter.write_text(PROGRAM.replace('"one"', '"two"'))
    program.send(signal.SIGHUP)
    program.wait_log("generation 2 serves")
    program.wait_log(r"generation=1 status=0", 3)
    with program.client() as client:
        assert whole_message(client)["X-Version"] == "two"
    client = program.client().open()
    begin(client)
    program.send(signal.SIGINT)
    program.wait_log("stopping: draining")
    complete(client)
    client.quit()
    assert program.finish() == 0


def test_ctrl_c_stops_it_once_only(program: Program) -> None:
    program.begin()
    client = program.client().open()
    begin(client)
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does
    program.wait_log("stopping: draining")
    assert "stopping now" not in program.log()
    complete(client)
    client.quit()
    assert program.finish() == 0


def test_when_the_program_is_killed_the_server_stops(program: Program) -> None:
    program.begin()
    program.send(signal.SIGKILL)
    program.finish()
    wait_until(lambda: is_gone(program.master), "the master leaves")
    assert "the program that started this server is gone" in program.log()
    wait_until(lambda: not program.workers(), "the workers leave")


def test_the_status_of_a_server_that_cannot_start_is_returned(program: Program) -> None:
    program.filter.write_text(PROGRAM.replace('print("options"', 'raise OSError("no data base"'))
    program.start(target="", listen=(), command=(str(program.filter),), wait=False)
    assert program.finish() == 70
    assert "status 70" in program.log()


@pytest.mark.parametrize(("value", "lines"), [("True", 1), ("'on'", 1), ("'off'", 0), ("False", 0)])
def test_a_flag_is_an_argument_too(program: Program, value: str, lines: int) -> None:
    program.begin(PROGRAM.replace("drain_stop", f"log_messages={value}, drain_stop"))
    with program.client() as client:
        whole_message(client)
    assert program.stop() == 0
    assert program.log().count(" fastmilter.message: ") == lines


def test_a_class_of_an_imported_module_is_found_wherever_the_program_stands(program: Program) -> None:
    library = program.directory / "lib"
    (library / "gateway").mkdir(parents=True)
    (library / "gateway" / "__init__.py").touch()
    (library / "gateway" / "filters.py").write_text(FILTER)
    source = f"""
import sys
sys.path.append({str(library)!r})
import fastmilter
from gateway.filters import Tagger
if __name__ == "__main__":
    sys.exit(fastmilter.serve(Tagger, listen=["inet:0@127.0.0.1"], workers="2"))
"""
    program.begin(source)
    with program.client() as client:
        whole_message(client)
    assert program.stop() == 0


def test_a_module_run_by_its_name_is_found(program: Program) -> None:
    program.begin(PROGRAM, "-m", "tagger")
    with program.client() as client:
        whole_message(client)
    assert program.stop() == 0


def test_a_target_may_be_given_as_text_and_from_another_thread(program: Program) -> None:
    source = """
import fastmilter, threading
def run():
    print("status", fastmilter.serve("tagger_class:Tagger", listen="inet:0@127.0.0.1", workers=2), flush=True)
if __name__ == "__main__":
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
"""
    (program.directory / "tagger_class.py").write_text(FILTER)
    program.begin(source)
    os.kill(program.master, signal.SIGTERM)
    assert program.finish() == 0
    assert "status 0" in program.log()


class Importable(fastmilter.Filter):
    class Nested(fastmilter.Filter):
        pass


def test_names() -> None:
    assert name_of(Importable) == f"{__name__}:Importable"
    assert name_of(Importable.Nested) == f"{__name__}:Importable.Nested"


def test_a_class_that_no_other_process_can_import_is_refused() -> None:
    class Local(fastmilter.Filter):
        pass

    with pytest.raises(ConfigError, match="a server needs a class at the top of a module"):
        serve(Local)
    renamed = type("Importable", (fastmilter.Filter,), {"__module__": __name__, "__qualname__": "Importable"})
    with pytest.raises(ConfigError, match="cannot be imported by that name"):
        serve(renamed)


def test_a_class_typed_in_is_refused() -> None:
    source = "import fastmilter\nclass A(fastmilter.Filter): pass\nfastmilter.serve(A)\n"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert "ConfigError: A is in no file" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"workers": 0}, "workers: 0 will not do: write a whole number from 1, or auto"),
        ({"listen": "8894"}, "listen: address '8894' is not one of"),
        ({"listen": []}, "listen: there must be at least one address"),
        ({"idle_timeuot": 3}, r"serve\(\) has no option 'idle_timeuot'; did you mean idle_timeout"),
        ({"drain_stop": (3, 2, 1)}, "drain_stop: .* does not rise"),
        ({"options": {"a": object()}}, r"options\['a'\] cannot be handed to another process"),
    ],
)
def test_arguments_that_will_not_do_are_refused_before_anything_is_started(
    arguments: dict[str, object], error: str
) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ConfigError, match=error):
        serve(Importable, **arguments)  # type: ignore[arg-type]  # whatever a user may write
    assert os.listdir("/proc/self/fd") == before
