"""What ``ps`` shows: ``fastmilter: master [Tagger]``, ``fastmilter: worker 3 [Tagger]``, ``... draining``.

Titles change only when the state of a process changes. Where ``setproctitle`` is missing nothing else changes.
"""

try:
    from setproctitle import getproctitle, setproctitle
except ImportError:  # a platform without it: the titles stay those of the interpreter

    def getproctitle() -> str:
        """Stand in for the missing library."""
        return ""

    def setproctitle(title: str) -> None:
        """Stand in for the missing library."""


_DRAINING = " draining"


def master_title(name: str) -> None:
    """Call this process the master of the filter ``name``."""
    setproctitle(f"fastmilter: master [{name}]")


def worker_title(number: int, name: str) -> None:
    """Call this process worker ``number`` (from 1) of the filter ``name``."""
    setproctitle(f"fastmilter: worker {number} [{name}]")


def monitor_title(name: str) -> None:
    """Call this process the monitor of the filter ``name``."""
    setproctitle(f"fastmilter: monitor [{name}]")


def mark_draining() -> None:
    """Add to the title that this process takes nothing new and leaves when it is done."""
    title = getproctitle()
    if title and not title.endswith(_DRAINING):
        setproctitle(title + _DRAINING)
