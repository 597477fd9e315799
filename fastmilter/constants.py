"""The milter protocol as data: letters, flags, steps and limits, libmilter's name beside each.

This is floor 0: it imports nothing of the project, and every other module takes its numbers from here.

Sources: Sendmail's ``include/libmilter/mfdef.h`` and ``mfapi.h``.
"""

from enum import Enum, IntEnum, IntFlag, StrEnum
from typing import Final, NamedTuple

PROTOCOL_VERSION: Final = 6
"""The newest version of the protocol (SMFI_PROT_VERSION); Sendmail 8.14 and Postfix 2.6 brought it."""

MIN_PROTOCOL_VERSION: Final = 2
"""The oldest version a filter answers: libmilter and Sendmail refuse version 1 too."""

LENGTH_BYTES: Final = 4
"""Size of the length in front of each packet, in bytes (MILTER_LEN_BYTES)."""

OPTNEG_BYTES: Final = 12
"""Smallest payload of an option negotiation: version, actions, protocol (MILTER_OPTLEN)."""

CHUNK_BYTES: Final = 65535
"""Largest piece of a body in one packet unless a larger size was negotiated (MILTER_CHUNK_SIZE)."""

MAX_DATA_BYTES: Final = 65535
"""Largest payload, without its command letter, unless a larger one was negotiated (MILTER_MAX_DATA_SIZE)."""

MAX_DATA_BYTES_256K: Final = 262143
"""Largest payload with SMFIP_MDS_256K agreed (MILTER_MDS_256K)."""

MAX_DATA_BYTES_1M: Final = 1048575
"""Largest payload with SMFIP_MDS_1M agreed (MILTER_MDS_1M)."""

MAX_RESPONSE_BYTES: Final = 1048575 + 4096
"""Largest payload of a response that a client takes: no source bounds it; this is the largest body piece and some."""

MAX_REPLY_LINES: Final = 32
"""Most lines in one SMTP reply (MAXREPLIES)."""

MAX_REPLY_LINE_BYTES: Final = 980
"""Longest line of an SMTP reply as it stands in a packet, in bytes (MAXREPLYLEN)."""

MAX_SMTP_LINE_BYTES: Final = 512
"""Longest line of an SMTP reply with its code and CRLF, in bytes (RFC 5321 section 4.5.3.1.5)."""

MAX_HEADER_INDEX: Final = 0x7FFFFFFF
"""Largest index of a header field: above it Postfix and Sendmail disagree about the sign."""

MAX_RECIPIENTS: Final = 10_000
"""Recipients of a message (RCPT commands) unless told otherwise; RFC 5321 asks for 100, Postfix takes 1000."""

MAX_HEADER_FIELDS: Final = 10_000
"""Header fields of a message unless told otherwise."""

MAX_HEADER_BYTES: Final = 1 << 20
"""Names and values of all header fields of a message together unless told otherwise; Exim's default."""


class CommandLetter(bytes, Enum):
    """What an MTA sends to a filter (SMFIC_*)."""

    ABORT = b"A"
    BODY = b"B"
    CONNECT = b"C"
    MACRO = b"D"
    END_OF_MESSAGE = b"E"  # SMFIC_BODYEOB
    HELO = b"H"
    QUIT_NEW_CONNECTION = b"K"  # SMFIC_QUIT_NC, version 6
    HEADER = b"L"
    MAIL = b"M"
    END_OF_HEADERS = b"N"  # SMFIC_EOH, version 2
    NEGOTIATE = b"O"  # SMFIC_OPTNEG
    QUIT = b"Q"
    RCPT = b"R"
    DATA = b"T"  # version 4
    UNKNOWN = b"U"  # version 3


class ResponseLetter(bytes, Enum):
    """What a filter sends to an MTA (SMFIR_*)."""

    ADD_RECIPIENT = b"+"
    ADD_RECIPIENT_PARAMS = b"2"  # SMFIR_ADDRCPT_PAR
    DELETE_RECIPIENT = b"-"
    SHUTDOWN = b"4"  # never sent by us: Postfix before 3.11 accepts and drops the mail
    ACCEPT = b"a"
    REPLACE_BODY = b"b"
    CONTINUE = b"c"
    DISCARD = b"d"
    CHANGE_SENDER = b"e"  # SMFIR_CHGFROM
    CONNECTION_FAIL = b"f"  # never sent by us: no MTA understands it
    ADD_HEADER = b"h"
    INSERT_HEADER = b"i"
    CHANGE_HEADER = b"m"
    NEGOTIATE = b"O"
    PROGRESS = b"p"
    QUARANTINE = b"q"
    REJECT = b"r"
    SKIP = b"s"
    TEMPFAIL = b"t"
    REPLY_CODE = b"y"


class Family(bytes, Enum):
    """Kind of the client's address in CONNECT (SMFIA_*)."""

    UNKNOWN = b"U"
    UNIX = b"L"
    INET = b"4"
    INET6 = b"6"


class Action(IntFlag):
    """What a filter may do to a message (SMFIF_*); the comment says since which version of the protocol."""

    ADD_HEADERS = 0x01  # SMFIF_ADDHDRS, 1: add and insert
    CHANGE_BODY = 0x02  # SMFIF_CHGBODY, 1
    ADD_RECIPIENT = 0x04  # SMFIF_ADDRCPT, 1
    DELETE_RECIPIENT = 0x08  # SMFIF_DELRCPT, 1
    CHANGE_HEADERS = 0x10  # SMFIF_CHGHDRS, 2: change and delete
    QUARANTINE = 0x20  # SMFIF_QUARANTINE, 2
    CHANGE_SENDER = 0x40  # SMFIF_CHGFROM, 6
    ADD_RECIPIENT_PARAMS = 0x80  # SMFIF_ADDRCPT_PAR, 6
    REQUEST_MACROS = 0x100  # SMFIF_SETSYMLIST, 6


class ProtocolFlag(IntFlag):
    """How the two sides talk (SMFIP_*): NO_x: do not send x; NR_x: x gets no reply."""

    NO_CONNECT = 0x1
    NO_HELO = 0x2
    NO_MAIL = 0x4
    NO_RCPT = 0x8
    NO_BODY = 0x10
    NO_HEADERS = 0x20
    NO_END_OF_HEADERS = 0x40
    NR_HEADER = 0x80  # SMFIP_NR_HDR, once SMFIP_NOHREPL
    NO_UNKNOWN = 0x100
    NO_DATA = 0x200
    SKIP = 0x400  # the MTA understands the answer SKIP
    REJECTED_RCPT = 0x800  # SMFIP_RCPT_REJ: show recipients that the MTA itself refuses
    NR_CONNECT = 0x1000
    NR_HELO = 0x2000
    NR_MAIL = 0x4000
    NR_RCPT = 0x8000
    NR_DATA = 0x10000
    NR_UNKNOWN = 0x20000
    NR_END_OF_HEADERS = 0x40000
    NR_BODY = 0x80000
    LEADING_SPACE = 0x100000  # SMFIP_HDR_LEADSPC: header values as they are, both ways
    MDS_256K = 0x10000000
    MDS_1M = 0x20000000
    INTERNAL = 0x40000000  # reserved by libmilter
    TEST = 0x80000000  # libmilter's own test rigs


class MacroStage(IntEnum):
    """Numbers of the steps in a macro request (SMFIM_*). Not in the order of the steps: EOM comes before EOH."""

    CONNECT = 0
    HELO = 1
    MAIL = 2  # SMFIM_ENVFROM
    RCPT = 3  # SMFIM_ENVRCPT
    DATA = 4
    END_OF_MESSAGE = 5  # SMFIM_EOM
    END_OF_HEADERS = 6  # SMFIM_EOH


class Step(StrEnum):
    """A step of an SMTP session that a filter is asked about; used wherever a step is named."""

    CONNECT = "connect"
    HELO = "helo"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    HEADER = "header"
    END_OF_HEADERS = "end_of_headers"
    BODY = "body"
    END_OF_MESSAGE = "end_of_message"
    UNKNOWN = "unknown"


class StepFacts(NamedTuple):
    """What the protocol says of one step."""

    letter: CommandLetter
    suppress: ProtocolFlag
    """The bit by which a filter asks not to be sent the step; 0 where there is none."""
    no_reply: ProtocolFlag
    """The bit by which a filter asks to leave the step unanswered; 0 where there is none."""
    macro_stage: MacroStage | None
    """The number of the step in a macro request; ``None`` where a filter cannot ask."""


_NONE = ProtocolFlag(0)

STEPS: Final[dict[Step, StepFacts]] = {
    Step.CONNECT: StepFacts(
        CommandLetter.CONNECT, ProtocolFlag.NO_CONNECT, ProtocolFlag.NR_CONNECT, MacroStage.CONNECT
    ),
    Step.HELO: StepFacts(CommandLetter.HELO, ProtocolFlag.NO_HELO, ProtocolFlag.NR_HELO, MacroStage.HELO),
    Step.MAIL: StepFacts(CommandLetter.MAIL, ProtocolFlag.NO_MAIL, ProtocolFlag.NR_MAIL, MacroStage.MAIL),
    Step.RCPT: StepFacts(CommandLetter.RCPT, ProtocolFlag.NO_RCPT, ProtocolFlag.NR_RCPT, MacroStage.RCPT),
    Step.DATA: StepFacts(CommandLetter.DATA, ProtocolFlag.NO_DATA, ProtocolFlag.NR_DATA, MacroStage.DATA),
    Step.HEADER: StepFacts(CommandLetter.HEADER, ProtocolFlag.NO_HEADERS, ProtocolFlag.NR_HEADER, None),
    Step.END_OF_HEADERS: StepFacts(
        CommandLetter.END_OF_HEADERS,
        ProtocolFlag.NO_END_OF_HEADERS,
        ProtocolFlag.NR_END_OF_HEADERS,
        MacroStage.END_OF_HEADERS,
    ),
    Step.BODY: StepFacts(CommandLetter.BODY, ProtocolFlag.NO_BODY, ProtocolFlag.NR_BODY, None),
    Step.END_OF_MESSAGE: StepFacts(CommandLetter.END_OF_MESSAGE, _NONE, _NONE, MacroStage.END_OF_MESSAGE),
    Step.UNKNOWN: StepFacts(CommandLetter.UNKNOWN, ProtocolFlag.NO_UNKNOWN, ProtocolFlag.NR_UNKNOWN, None),
}
"""Every step in the order of an SMTP session (UNKNOWN can come anywhere): the one table about steps."""

ALL_ACTIONS: Final = Action(0x1FF)
"""Every action of version 6; Postfix offers them at every version."""

ALL_PROTOCOL: Final = ProtocolFlag(0x1FFFFF)
"""Every protocol bit of version 6 that Sendmail and Postfix offer."""

VERSION_1_ACTIONS: Final = Action(0x0F)
"""What an offer of 0 actions means (SMFI_V1_ACTS)."""

VERSION_1_PROTOCOL: Final = ProtocolFlag(0x3F)
"""What an offer of no protocol bits means (SMFI_V1_PROT)."""

PROTOCOL_OF_VERSION: Final[dict[int, ProtocolFlag]] = {
    2: ProtocolFlag(0x7F),
    3: ProtocolFlag(0x17F),
    4: ProtocolFlag(0x37F),
    5: ProtocolFlag(0x37F),  # never shipped; Postfix treats it as 4
    6: ALL_PROTOCOL,
}
"""The protocol bits that an MTA speaking a version offers (Postfix, ``milter_protocol``)."""

POSTFIX_MACROS: Final[dict[Step, tuple[str, ...]]] = {
    Step.CONNECT: ("j", "{daemon_name}", "{daemon_addr}", "v", "_"),
    Step.HELO: ("{tls_version}", "{cipher}", "{cipher_bits}", "{cert_subject}", "{cert_issuer}"),
    Step.MAIL: (
        "i",
        "{auth_type}",
        "{auth_authen}",
        "{auth_author}",
        "{mail_addr}",
        "{mail_host}",
        "{mail_mailer}",
    ),
    Step.RCPT: ("i", "{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}"),
    Step.DATA: ("i",),
    Step.HEADER: ("i",),
    Step.END_OF_HEADERS: ("i",),
    Step.BODY: ("i",),
    Step.END_OF_MESSAGE: ("i",),
}
"""The macros that Postfix tells before each step by default (``milter_*_macros``)."""

POSTFIX_MACRO_SETTINGS: Final[dict[Step, str]] = {
    Step.CONNECT: "milter_connect_macros",
    Step.HELO: "milter_helo_macros",
    Step.MAIL: "milter_mail_macros",
    Step.RCPT: "milter_rcpt_macros",
    Step.DATA: "milter_data_macros",
    Step.END_OF_HEADERS: "milter_end_of_header_macros",
    Step.END_OF_MESSAGE: "milter_end_of_data_macros",
}
"""The setting of Postfix that lists the macros of a step, where a filter can ask for others."""

POSTFIX_KNOWN_MACROS: Final[dict[str, Step]] = {
    **dict.fromkeys(
        (
            "_",
            "j",
            "v",
            "{client_addr}",
            "{client_connections}",
            "{client_name}",
            "{client_port}",
            "{client_ptr}",
            "{client_resolve}",
            "{daemon_addr}",
            "{daemon_name}",
            "{daemon_port}",
            "{tls_version}",
            "{cipher}",
            "{cipher_bits}",
            "{cert_subject}",
            "{cert_issuer}",
        ),
        Step.CONNECT,
    ),
    **dict.fromkeys(
        ("{auth_type}", "{auth_authen}", "{auth_author}", "{mail_addr}", "{mail_host}", "{mail_mailer}"), Step.MAIL
    ),
    **dict.fromkeys(("i", "{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}"), Step.RCPT),
}
"""Every macro that Postfix has, and the first step at which it can have a value: it sends no other, whoever asks.

Source: the table of macros in MILTER_README; ``src/smtpd/smtpd_milter.c`` (smtpd_milter_eval)."""

POSTFIX_CONTENT_MACROS: Final = frozenset(
    {
        "_",
        "i",
        "j",
        "v",
        "{auth_authen}",
        "{auth_author}",
        "{auth_type}",
        "{client_addr}",
        "{client_name}",
        "{client_port}",
        "{client_ptr}",
        "{daemon_addr}",
        "{daemon_name}",
        "{daemon_port}",
        "{mail_addr}",
        "{rcpt_addr}",
    }
)
"""Those that Postfix has at the end of headers and of the message, where another of its programs asks the filter.

Source: ``src/cleanup/cleanup_milter.c`` (cleanup_milter_eval)."""

SENDMAIL_MACROS: Final[dict[Step, tuple[str, ...]]] = {
    Step.CONNECT: ("j", "_", "{daemon_name}", "{if_name}", "{if_addr}"),
    Step.HELO: ("{tls_version}", "{cipher}", "{cipher_bits}", "{cert_subject}", "{cert_issuer}"),
    Step.MAIL: (
        "i",
        "{auth_type}",
        "{auth_authen}",
        "{auth_ssf}",
        "{auth_author}",
        "{mail_mailer}",
        "{mail_host}",
        "{mail_addr}",
    ),
    Step.RCPT: ("{rcpt_mailer}", "{rcpt_host}", "{rcpt_addr}"),
    Step.END_OF_MESSAGE: ("{msg_id}",),
}
"""The macros that Sendmail tells before each step by default (``confMILTER_MACROS_*``)."""

FIELD_NAMES: Final = (
    "Return-Path",
    "Delivered-To",
    "Received",
    "Received-SPF",
    "Authentication-Results",
    "DKIM-Signature",
    "ARC-Seal",
    "ARC-Message-Signature",
    "ARC-Authentication-Results",
    "From",
    "Sender",
    "Reply-To",
    "To",
    "Cc",
    "Bcc",
    "Subject",
    "Date",
    "Message-ID",
    "Message-Id",
    "In-Reply-To",
    "References",
    "Comments",
    "Keywords",
    "Resent-Date",
    "Resent-From",
    "Resent-To",
    "Resent-Message-ID",
    "MIME-Version",
    "Mime-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "Content-Disposition",
    "Content-Language",
    "Content-ID",
    "Content-Description",
    "Content-Length",
    "List-Id",
    "List-ID",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "List-Subscribe",
    "List-Post",
    "List-Help",
    "List-Archive",
    "List-Owner",
    "User-Agent",
    "X-Mailer",
    "Thread-Topic",
    "Thread-Index",
    "Importance",
    "X-Priority",
    "Priority",
    "Precedence",
    "Auto-Submitted",
    "Feedback-ID",
    "Errors-To",
    "Disposition-Notification-To",
    "Organization",
    "Accept-Language",
    "Autocrypt",
    "Archived-At",
    "X-Spam-Status",
    "X-Spam-Score",
    "X-Spam-Level",
    "X-Spam-Flag",
    "X-Virus-Scanned",
    "X-Originating-IP",
    "X-Received",
    "X-Google-DKIM-Signature",
    "X-Gm-Message-State",
    "X-Google-Smtp-Source",
    "X-MS-Has-Attach",
    "X-MS-TNEF-Correlator",
    "X-Auto-Response-Suppress",
)
"""Header fields that are often seen, as they are usually spelled (IANA, Permanent Message Header Field Names)."""
