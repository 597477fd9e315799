"""Options: one table, three places where they are given, and errors that say what is right."""

import dataclasses
import os
from pathlib import Path

import pytest

from fastmilter.endpoints import parse_endpoint
from fastmilter.errors import ConfigError
from fastmilter.server.load import parse_target
from fastmilter.server.options import (
    OPTIONS,
    parse_duration,
    parse_tiers,
    parse_workers,
    processors,
    render_options,
)
from fastmilter.server.settings import Settings, UsageError, load_settings

TARGET = {"target": "tagger:Tagger"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fm.toml"


def test_defaults() -> None:
    settings = load_settings(TARGET, {})
    assert settings.target == parse_target("tagger:Tagger")
    assert [str(address) for address in settings.listen] == ["inet:8894@127.0.0.1"]
    assert settings.workers == processors() >= 1
    assert (settings.negotiation_timeout, settings.packet_timeout, settings.idle_timeout) == (30.0, 300.0, 7210.0)
    assert settings.drain_stop == (20.0, 40.0, 60.0)
    assert settings.drain_reload == (600.0, 900.0, 1200.0)
    assert settings.filter_options == {}
    assert settings.check_config is settings.log_messages is False
    assert settings.config is None


def test_the_table_and_the_settings_are_the_same_names() -> None:
    fields = [field.name for field in dataclasses.fields(Settings)]
    assert fields == [*(option.name for option in OPTIONS), "filter_options", "control_is_asked", "warnings"]


def test_the_reference_is_what_the_table_says() -> None:
    reference = Path(__file__).parents[2] / "docs" / "options.md"
    assert reference.read_text() == render_options(), (
        "docs/options.md is not up to date: write render_options() of fastmilter.server.settings into it"
    )
    for option in OPTIONS:
        assert f"`{option.switch}" in render_options()


def test_the_command_line_counts_before_the_environment_before_the_file_before_the_default(file: Path) -> None:
    file.write_text('target = "of.file:A"\nworkers = 1\nthreads = 1\npacket_timeout = 1\n')
    environment = {"FASTMILTER_WORKERS": "2", "FASTMILTER_THREADS": "2", "FASTMILTER_CONFIG": str(file)}
    settings = load_settings({"threads": "3", "workers": None}, environment)
    assert str(settings.target) == "of.file:A"
    assert (settings.threads, settings.workers, settings.packet_timeout) == (3, 2, 1.0)
    assert settings.idle_timeout == 7210.0


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load_settings(TARGET, {"FASTMILTER_THREADS": "", "FASTMILTER_CONFIG": ""}).threads == 100


def test_addresses_come_from_everywhere(file: Path) -> None:
    expected = tuple(parse_endpoint(text) for text in ("inet:1@127.0.0.1", "unix:/run/fm.sock?mode=0666"))
    texts = ["inet:1@127.0.0.1", "unix:/run/fm.sock?mode=0666"]
    assert load_settings({**TARGET, "listen": texts}, {}).listen == expected
    for separator in (" ", ",", ", "):
        assert load_settings(TARGET, {"FASTMILTER_LISTEN": separator.join(texts)}).listen == expected
    file.write_text(f"listen = {texts}\n")
    assert load_settings({**TARGET, "config": str(file)}, {}).listen == expected
    file.write_text(f'listen = "{texts[0]}"\n')
    assert load_settings({**TARGET, "config": str(file)}, {}).listen == expected[:1]


@pytest.mark.parametrize(
    ("on", "off"), [("yes", "no"), ("true", "false"), ("on", "off"), ("1", "0"), ("YES", "No"), (" True ", "OFF")]
)
def test_flags_come_from_everywhere(file: Path, on: str, off: str) -> None:
    def in_file(text: str) -> dict[str, object]:
        file.write_text(f"log_messages = {text}\n")
        return {**TARGET, "config": str(file)}

    assert load_settings(TARGET, {"FASTMILTER_LOG_MESSAGES": on}).log_messages is True
    assert load_settings(TARGET, {"FASTMILTER_LOG_MESSAGES": off}).log_messages is False
    assert load_settings(in_file(f"'{on}'"), {}).log_messages is True
    assert load_settings(in_file(f"'{off}'"), {}).log_messages is False
    assert load_settings(in_file("true"), {}).log_messages is True
    assert load_settings(in_file("false"), {}).log_messages is False
    assert load_settings(in_file("1"), {}).log_messages is True
    assert load_settings(in_file("true"), {"FASTMILTER_LOG_MESSAGES": off}).log_messages is False
    assert load_settings({**TARGET, "log_messages": True}, {"FASTMILTER_LOG_MESSAGES": off}).log_messages is True
    assert load_settings({**TARGET, "log_messages": None}, {}).log_messages is False


def test_every_key_may_have_dashes_in_the_file(file: Path) -> None:
    file.write_text('idle-timeout = "2h"\ndrain-stop = [1, "2s", 3.5]\n')
    settings = load_settings({**TARGET, "config": str(file)}, {})
    assert settings.idle_timeout == 7200.0
    assert settings.drain_stop == (1.0, 2.0, 3.5)


def test_the_filter_has_its_own_table(file: Path) -> None:
    file.write_text('workers = 2\n[filter]\nworkers = "mine"\nlist = [1, 2]\n[filter.deep]\nkey = true\n')
    settings = load_settings({**TARGET, "config": str(file)}, {"FASTMILTER_FILTER": '{"list": [3], "new": null}'})
    assert settings.workers == 2
    assert settings.filter_options == {"workers": "mine", "list": [3], "deep": {"key": True}, "new": None}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("wokers = 2\n", "there is no option 'wokers'; did you mean workers"),
        ("drain-stopp = 2\n", "did you mean drain_stop"),
        (
            "colour = 2\n",
            r"there is no option 'colour' \(options of the filter stand in \[filter\]\); there are: target",
        ),
        ("[server]\nworkers = 2\n", r"there is no table \[server\]: options of the server stand at the top"),
        ("config = 'x'\n", "there is no option 'config'"),
        ("check_config = true\n", "there is no option 'check_config'"),
        ("filter = 3\n", r"write \[filter\] and keys below it"),
        ("idle-timeout = 1\nidle_timeout = 2\n", "idle_timeout is there twice"),
        ("workers = true\n", r"workers in .*fm\.toml: True will not do: write a whole number from 1, or auto"),
        ("workers = 2.0\n", "write a whole number from 1"),
        ("threads = 'auto'\n", "'auto' will not do"),
        ("listen = []\n", "at least one address"),
        ("listen = 8894\n", "write an address, or a list of addresses"),
        ("listen = ['inet:1@127.0.0.1', 'inet:127.0.0.1:1']\n", "'inet:1@127.0.0.1' is there twice"),
        ("idle_timeout = false\n", "is not a time"),
        ("log_messages = 'perhaps'\n", r"log_messages in .*: 'perhaps' will not do: write yes or no, true or false"),
        ("log_messages = 2\n", "2 will not do: write yes or no"),
        ("log_messages = 1.0\n", "1.0 will not do: write yes or no"),
        ("log_messages = []\n", "write yes or no"),
        ("log_level = 'loud'\n", "write debug, info, warning or error"),
        ("workers = \n", r"fm\.toml is not valid TOML: .*line 1"),
    ],
)
def test_errors_in_the_file_name_the_key_and_the_right_form(file: Path, content: str, error: str) -> None:
    file.write_text(content)
    with pytest.raises(ConfigError, match=error) as caught:
        load_settings({**TARGET, "config": str(file)}, {})
    assert not isinstance(caught.value, UsageError)


def test_a_file_that_cannot_be_read_is_an_error(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"fm\.toml: No such file"):
        load_settings({**TARGET, "config": str(file)}, {})
    with pytest.raises(ConfigError, match="Is a directory"):
        load_settings({**TARGET, "config": str(file.parent)}, {})
    file.write_bytes(b"target = '\xff'\n")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_settings({**TARGET, "config": str(file)}, {})


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("workers", "three", "--workers: 'three' will not do: write a whole number from 1, or auto"),
        ("workers", "0", "--workers: 0 will not do"),
        ("workers", "-1", "--workers: '-1' will not do"),
        ("workers", "99999", "--workers: 99999 is too many: the most is 1024"),
        ("threads", "1e3", "--threads: '1e3' will not do"),
        ("listen", ["8894"], "--listen: address '8894' is not one of inet:PORT@HOST"),
        ("target", "tagger", "TARGET: 'tagger' does not name a class in a module: write module:Class"),
        (
            "idle_timeout",
            "soon",
            "--idle-timeout: 'soon' is not a time: write seconds, or a number with s, min, h or d",
        ),
        ("idle_timeout", "0", "--idle-timeout: '0' is out of range"),
        ("drain_stop", "20,40", "--drain-stop: '20,40' will not do: write three rising times, such as 20,40,60"),
        ("drain_stop", "20,60,40", "--drain-stop: '20,60,40' does not rise"),
    ],
)
def test_errors_on_the_command_line_name_the_option_and_the_right_form(name: str, value: object, error: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings({**TARGET, name: value}, {})
    assert error in str(caught.value)


def test_errors_in_the_environment_name_the_variable() -> None:
    with pytest.raises(ConfigError, match="FASTMILTER_WORKERS: 'x' will not do") as caught:
        load_settings(TARGET, {"FASTMILTER_WORKERS": "x"})
    assert not isinstance(caught.value, UsageError)
    with pytest.raises(ConfigError, match="FASTMILTER_LOG_MESSAGES: 'ja' will not do: write yes or no, true or false"):
        load_settings(TARGET, {"FASTMILTER_LOG_MESSAGES": "ja"})
    for text, error in (("{", "not valid JSON"), ("[1]", "write a JSON object")):
        with pytest.raises(ConfigError, match=f"FASTMILTER_FILTER: {error}"):
            load_settings(TARGET, {"FASTMILTER_FILTER": text})


def test_the_filter_may_stand_in_the_file(file: Path) -> None:
    file.write_text("target = 'tagger:Tagger'\n")
    assert load_settings({"config": str(file)}, {}).target == parse_target("tagger:Tagger")
    file.write_text("target = 3\n")
    with pytest.raises(ConfigError, match=r"target in .*fm\.toml: 3 will not do: write module:Class"):
        load_settings({"config": str(file)}, {})


def test_without_a_filter_there_is_nothing_to_serve() -> None:
    with pytest.raises(UsageError, match="no filter given: write fastmilter serve module:Class"):
        load_settings({}, {})


def test_a_misspelt_variable_is_told_but_foreign_ones_are_not() -> None:
    # Kubernetes gives every container of a namespace the latter two, should a service be called fastmilter.
    environment = {
        "FASTMILTER_WORKER": "2",
        "FASTMILTER_SERVICE_HOST": "10.0.0.1",
        "FASTMILTER_PORT_8894_TCP": "tcp://10.0.0.1:8894",
    }
    settings = load_settings(TARGET, environment)
    assert settings.warnings == (
        "environment variable FASTMILTER_WORKER is not known; did you mean FASTMILTER_WORKERS?",
    )


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("30", 30.0), ("30s", 30.0), ("1.5 min", 90.0), ("2m", 120.0), ("1H", 3600.0), ("7d", 604800.0), (0.25, 0.25)],
)
def test_times(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize("value", ["", "s", "-1", "1e3", "1 week", "inf", "nan", "8d", 0, -1, float("nan"), None, "٣"])
def test_what_is_no_time(value: object) -> None:
    with pytest.raises(ConfigError):
        parse_duration(value)


@pytest.mark.parametrize("value", [3, "1,2,3,4", "a,b,c", [1, 2], None, {"a": 1, "b": 2, "c": 3}])
def test_what_are_no_tiers(value: object) -> None:
    with pytest.raises(ConfigError):
        parse_tiers(value)


def test_auto_is_the_processors_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert parse_workers("auto") == 1
    finally:
        os.sched_setaffinity(0, before)
