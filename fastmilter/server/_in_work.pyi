"""What a worker is in, in its slot of shared memory, so that the master sees it even if the loop never turns again."""

from typing import final

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
