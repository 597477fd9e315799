"""What a worker is in, in its slot of shared memory, so that the master sees it even if the loop never turns again."""

from collections.abc import Awaitable, Generator
from typing import Any, final

from fastmilter.conversation import Conversation
from fastmilter.server.slots import Slots

@final
class InWork:
    """The writer's side of one slot: ``enter`` before each callback, ``leave`` when there is none left to call."""

    conversation: Conversation | None
    """Whose callback is in work."""

    def __init__(self, slots: Slots, slot: int) -> None: ...
    def enter(self, conversation: Conversation) -> None:
        """Note the callback that ``conversation.invoke()`` is about to run."""

    def leave(self) -> None:
        """Note that no callback is in work."""

@final
class Turns:
    """What an async callback is waited for with: each of its turns on the loop is its callback in work.

    Several may take turns on one loop; whatever else runs there is nobody's.
    """

    awaited: Awaitable[Any]
    """What the callback has returned."""

    def __init__(self, in_work: InWork, conversation: Conversation, awaited: Awaitable[Any]) -> None: ...
    def __await__(self) -> Generator[Any, None, Any]: ...
    def __next__(self) -> Any: ...
    def throw(self, *error: Any) -> Any:
        """Have it go on with an exception, as when it is cancelled."""

    def close(self) -> None:
        """Have it end, as when the loop is closed before."""
