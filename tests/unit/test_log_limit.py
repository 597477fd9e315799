"""Lines that others cause: few, but none goes uncounted."""

from fastmilter.server.log_limit import LogLimit


def test_one_line_at_a_time_and_none_is_lost() -> None:
    said: list[str] = []
    limit = LogLimit(said.append, 1.0)
    limit.on_time(99.0)
    for now in (100.0, 100.2, 100.9):
        limit.add(f"at {now}", now)
    limit.on_time(100.99)
    assert said == ["at 100.0"]
    limit.on_time(101.0)
    limit.on_time(105.0)
    assert said == ["at 100.0", "at 100.9 (1 more like it)"]
    limit.add("later", 106.0)
    assert said[2:] == ["later"]


def test_a_burst_is_said_as_it_is() -> None:
    said: list[str] = []
    limit = LogLimit(said.append, 10.0, burst=3)
    for number in range(8):
        limit.add(f"{number}", 100.0 + number)
    assert said == ["0", "1", "2"]
    limit.add("8", 111.0)
    assert said[3:] == ["7 (4 more like it)", "8"]
    limit.add("9", 111.0)
    limit.add("10", 111.0)
    assert said[5:] == ["9"], "what was left out before counts too"
    limit.on_time(float("inf"))
    assert said[6:] == ["10"]
