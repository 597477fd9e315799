"""The server: a master that forks workers, and what both need. ``serve`` starts one from Python."""

from fastmilter.server.launch import serve

__all__ = ["serve"]
