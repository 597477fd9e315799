"""What authors of filters subclass.

One ``Filter`` object is one SMTP connection. Override the callbacks that are wanted; what is not overridden is not
asked of the MTA (``Filter.wish``), so it costs nothing. A callback returns a verdict, or ``None`` to go on.

Text is ``str``, UTF-8 with ``surrogateescape``: every byte the MTA sent comes back unchanged when it is handed on.
Bodies are ``bytes``.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from fastmilter.addresses import Address, Params, SocketAddress
from fastmilter.constants import ALL_ACTIONS, Action, Step
from fastmilter.errors import NoConnection, NoMessage
from fastmilter.macros import Macros
from fastmilter.message import Connection, Message, S
from fastmilter.negotiation import Offer, Wish
from fastmilter.plan import Plan, make_plan, mark_reply
from fastmilter.replies import TEMPFAIL, Verdict

Result = Verdict | None | Awaitable[Verdict | None]
"""What a callback returns, plain or ``async``; ``None`` means CONTINUE."""

F = TypeVar("F", bound=Callable[..., Any])

Deadline = float | Mapping[Step, float | None] | Mapping[str, float | None] | None


def no_reply(callback: F) -> F:
    """Ask the MTA not to wait for this callback (``on_connect``, ``on_helo``, ``on_mail``, ``on_rcpt``, ``on_data``).

    It saves a round trip; a verdict given there is kept and delivered later, and one recipient cannot be refused. A
    filter with ``@no_reply`` on ``on_mail`` cannot be drained between messages.

    It is not needed at ``on_connect``, ``on_helo`` and ``on_data`` where the callback returns nothing: then no MTA
    waits anyway. ``return CONTINUE`` somewhere in it makes the MTA wait.
    """
    return mark_reply(callback, False)


def early_verdict(callback: F) -> F:
    """Ask the MTA to wait for this callback (``on_header``, ``on_end_of_headers``, ``on_body``).

    The SMTP client sees the verdict no earlier: it only spares the transfer of the rest from the MTA to the filter,
    at the price of a round trip each.
    """
    return mark_reply(callback, True)


class Binding:
    """What a filter object is bound to, one end of a milter connection; ``conversation.Conversation`` is one."""

    connection: Connection | None
    message: Message[Any] | None

    @property
    def macros(self) -> Macros:
        """The macros of the connection and of the message in work."""
        raise NotImplementedError

    def progress(self) -> bool:
        """Tell the MTA that work goes on."""
        raise NotImplementedError


def _binding_of(served: "Filter[Any]") -> Binding | None:
    """Return what a filter object is bound to; until it is, it lacks the attribute.

    So nothing has to run when one is made, and a subclass that forgets ``super().__init__()`` works all the same.
    """
    try:
        return served._fastmilter
    except AttributeError:
        return None


def _message_of(binding: Binding | None) -> Message[Any]:
    message = None if binding is None else binding.message
    if message is None:
        raise NoMessage("there is no message: it lives from on_mail to on_message_end")
    return message


def _macros_of(binding: Binding | None) -> Macros:
    if binding is None:
        raise NoConnection("there are no macros before the connection")
    return binding.macros if binding.message is None else binding.message.macros


class Filter(Generic[S]):
    """One SMTP connection, as a filter sees it. Subclass it and override callbacks.

    ``class Grey(Filter[S])`` makes ``self.message.state`` an ``S()`` for each message instead of a namespace.

    Mistakes are caught when the class is made: an unknown ``on_...`` name, a wrong number of arguments or a bad class
    setting raise ``TypeError``.
    """

    __slots__ = ("__weakref__", "_fastmilter")

    error_verdict: ClassVar[Verdict] = TEMPFAIL
    """The answer for a callback that raised or returned something else than a verdict."""

    timeout_verdict: ClassVar[Verdict] = TEMPFAIL
    """The answer for a callback that ran out of time."""

    deadline: ClassVar[Deadline] = None
    """Seconds that blocking and async callbacks have, ``None``, or a mapping by step. Plain callbacks run in the
    worker's loop and cannot be timed out."""

    actions: ClassVar[Action] = ALL_ACTIONS
    """What to ask for; by default all that the MTA offers."""

    requires: ClassVar[Action] = Action(0)
    """What the filter cannot do without: where the MTA does not offer it, the negotiation fails."""

    request_macros: ClassVar[Mapping[str, Collection[str]]] = {}
    """Macros to ask for beyond the MTA's defaults, by step: ``{"rcpt": ["{rcpt_addr}"]}``."""

    leading_space: ClassVar[bool] = False
    """Whether header values are handed over and taken as they are, with the space after the colon."""

    blocking: ClassVar[bool] = False
    """Whether callbacks wait for something and must run in threads."""

    _fastmilter: Binding | None
    _fastmilter_plan: ClassVar[Plan]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the class and work out what it asks of the MTA."""
        super().__init_subclass__(**kwargs)
        cls._fastmilter_plan = make_plan(cls, Filter)

    # -- what there is -------------------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        """The SMTP connection, from CONNECT to its end; ``NoConnection`` outside."""
        binding = _binding_of(self)
        if binding is None or binding.connection is None:
            raise NoConnection("there is no connection: it lives from on_connect to on_close")
        return binding.connection

    @property
    def message(self) -> Message[S]:
        """The message in work, from MAIL to its end; ``NoMessage`` outside."""
        return _message_of(_binding_of(self))

    @property
    def macros(self) -> Macros:
        """The macros that the MTA sent, the latest step first: ``self.macros["i"]``, ``KeyError`` if not sent."""
        return _macros_of(_binding_of(self))

    def progress(self) -> bool:
        """Tell the MTA that work goes on, so that it waits longer (smfi_progress).

        Sent at once where this MTA takes it now, above all in ``on_end_of_message``; returns whether it was sent.
        """
        binding = _binding_of(self)
        return binding is not None and binding.progress()

    @classmethod
    def wish(cls) -> Wish:
        """Return what this class asks of the MTA; ``on_negotiate`` may return a changed copy."""
        return cls._fastmilter_plan.wish

    # -- the worker ----------------------------------------------------------------------------------------------

    @classmethod
    def worker_started(cls, options: Any) -> Awaitable[None] | None:
        """Open pools and load models: called once in each worker before it serves.

        ``options``: the ``[filter]`` table of the configuration, or an instance of the dataclass ``Options`` nested
        in the class.
        """

    @classmethod
    def worker_stopped(cls) -> Awaitable[None] | None:
        """Close what ``worker_started`` opened: called once after the last connection."""

    # -- callbacks, in the order of a session --------------------------------------------------------------------

    def on_negotiate(self, offer: Offer) -> Wish | Awaitable[Wish | None] | None:
        """See what the MTA offers (xxfi_negotiate); return a changed ``self.wish()``, or ``None`` for the class's."""
        return None

    def on_connect(self, hostname: str, address: SocketAddress) -> Result:
        """Look at a client that connected (xxfi_connect). ACCEPT ends the filtering of the session."""
        return None

    def on_helo(self, name: str) -> Result:
        """Look at HELO or EHLO (xxfi_helo); it comes again after STARTTLS, or not at all."""
        return None

    def on_mail(self, sender: Address, params: Params) -> Result:
        """Look at MAIL FROM: a message begins (xxfi_envfrom)."""
        return None

    def on_rcpt(self, recipient: Address, params: Params) -> Result:
        """Look at RCPT TO (xxfi_envrcpt). REJECT refuses this recipient; ACCEPT accepts the whole message."""
        return None

    def on_rejected_rcpt(self, recipient: Address, params: Params, reason: str) -> Result:
        """Look at a recipient that the MTA itself refuses (Postfix); the verdict changes nothing."""
        return None

    def on_data(self) -> Result:
        """Look at DATA (xxfi_data); after a refusal the client may add recipients and try again."""
        return None

    def on_header(self, name: str, value: str) -> Result:
        r"""Look at a header field (xxfi_header); folding is ``"\\n"`` and white space within the value."""
        return None

    def on_end_of_headers(self) -> Result:
        """Look at the end of the header section (xxfi_eoh)."""
        return None

    def on_body(self, chunk: bytes) -> Result:
        """Look at a piece of the body as the MTA cut it (xxfi_body). SKIP: no more of it."""
        return None

    def on_end_of_message(self) -> Result:
        """Give the verdict (xxfi_eom); edits go out with it."""
        return None

    def on_unknown(self, command: str) -> Result:
        """Look at an SMTP command that the MTA does not know (xxfi_unknown); Postfix shows its first word only."""
        return None

    def on_abort(self) -> Awaitable[None] | None:
        """Take note that the message was dropped before its verdict (xxfi_abort)."""

    def on_message_end(self, verdict: Verdict | None) -> Awaitable[None] | None:
        """Clean up: called exactly once per message however it ends (``None``: dropped), ``self.message`` readable."""

    def on_close(self) -> Awaitable[None] | None:
        """Take note that the connection ended (xxfi_close); called exactly once."""

    # Optional; not defined here, since what is not there is not called:
    #   on_error(step, exception) -> Verdict     the verdict for a callback that raised
    #   on_timeout(step) -> Verdict              the verdict for a callback that ran out of time


Filter._fastmilter_plan = make_plan(Filter, Filter)
