"""What tests of guards share: a clock, and a call that fails."""

from fastmilter.guard import Guard


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def fail(guard: Guard, error: Exception | None = None) -> None:
    """Have one call of the guard fail."""
    error = error or OSError("connection refused")
    try:
        with guard:
            raise error
    except type(error):
        return
    raise AssertionError("what a block raises leaves it")
