"""How a method of the user's filter is called: by its name, without an object for the bound method in between."""

from typing import Any

def call_method(target: object, name: str, arguments: tuple[Any, ...]) -> Any:
    """Return ``getattr(target, name)(*arguments)``; at most 4 arguments."""
