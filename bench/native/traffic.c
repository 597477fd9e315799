#include "traffic.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT(s) (s), sizeof(s) - 1
#define ID "1234567890" /* replaced in each message */

/* The header section of ordinary mail; one NUL between name and value is added below. */
static const char *const fields[][2] = {
    {"Received", "from relay4.orchard.example (relay4.orchard.example [192.0.2.44])\n\tby mail.orchard.example (Postfix) "
                 "with ESMTPS id 4XyZ12\n\tfor <anna@harbour.example>; Mon, 17 Nov 2025 09:12:44 +0100 (CET)"},
    {"From", "Jiri Novak <jiri@orchard.example>"},
    {"To", "Anna Berg <anna@harbour.example>"},
    {"Subject", "Minutes of the harbour meeting"},
    {"Date", "Mon, 17 Nov 2025 09:12:40 +0100"},
    {"Message-ID", "<20251117081240.4711@orchard.example>"},
    {"MIME-Version", "1.0"},
    {"Content-Type", "text/plain; charset=utf-8; format=flowed"},
    {"Content-Transfer-Encoding", "8bit"},
    {"User-Agent", "Mozilla Thunderbird"},
    {"In-Reply-To", "<20251116190212.0815@harbour.example>"},
    {"References", "<20251114101010.1@harbour.example>\n <20251116190212.0815@harbour.example>"},
    {"Reply-To", "meetings@orchard.example"},
    {"Content-Language", "en-GB"},
    {"X-Priority", "3"},
    {"List-Id", "Harbour meetings <meetings.orchard.example>"},
    {"List-Unsubscribe", "<mailto:meetings-request@orchard.example?subject=unsubscribe>"},
    {"Precedence", "list"},
    {"X-Spam-Status", "No, score=-2.1 required=5.0 tests=BAYES_00,DKIM_SIGNED autolearn=ham"},
    {"DKIM-Signature", "v=1; a=rsa-sha256; c=relaxed/relaxed; d=orchard.example;\n\ts=mail; t=1763367160;\n\t"
                       "bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=;\n\th=From:To:Subject:Date:Message-ID;\n\t"
                       "b=dGhpcyBpcyBub3QgYSBzaWduYXR1cmUgYnV0IGFzIGxvbmcgYXMgb25lIHVzdWFsbHkgaXM="},
};
#define FIELDS (sizeof fields / sizeof *fields)

struct builder {
    const struct traffic *traffic;
    struct script *script;
    size_t start; /* of the segment being filled */
    unsigned packets;
    size_t mail, end; /* offsets of MAIL and of the end of message in that segment; SIZE_MAX: not in it */
};

static void *grown(void *memory, size_t size) {
    void *more = realloc(memory, size);
    if (!more) die("out of memory (%zu bytes)", size);
    return more;
}

static unsigned char *append(struct script *s, size_t length) {
    if (s->room - s->length < length) {
        s->room = (s->length + length) * 2;
        s->bytes = grown(s->bytes, s->room);
    }
    s->length += length;
    return s->bytes + s->length - length;
}

/* Notes where the queue id stands in a packet just made. */
static void note_ids(struct script *s, size_t from) {
    for (size_t at = from; at + QUEUE_ID_LENGTH <= s->length; at++) {
        if (memcmp(s->bytes + at, ID, QUEUE_ID_LENGTH) != 0) continue;
        if (s->id_count == s->id_room) {
            s->id_room = s->id_room ? s->id_room * 2 : 64;
            s->ids = grown(s->ids, s->id_room * sizeof *s->ids);
        }
        s->ids[s->id_count++] = at;
    }
}

/* A packet: letter, an optional stage byte, data. */
static void packet(struct builder *b, char letter, char stage, const void *data, size_t length) {
    size_t from = b->script->length;
    size_t payload = length + (stage ? 1 : 0);
    unsigned char *at = append(b->script, 5 + payload);
    put_u32(at, (uint32_t)payload + 1);
    at[4] = (unsigned char)letter;
    if (stage) at[5] = (unsigned char)stage;
    if (length) memcpy(at + 5 + (stage ? 1 : 0), data, length);
    if (stage) note_ids(b->script, from);
    if (stage == 'M') b->mail = from; /* its macros are the first bytes of a step, and always sent here */
    if (stage == 'E') b->end = from;
    b->packets++;
}

static void add_segment(struct builder *b, size_t offset, size_t length, char awaits) {
    struct script *s = b->script;
    if (s->count == s->segment_room) {
        s->segment_room = s->segment_room ? s->segment_room * 2 : 64;
        s->segments = grown(s->segments, (size_t)s->segment_room * sizeof *s->segments);
    }
    struct segment *segment = &s->segments[s->count];
    *segment = (struct segment){.offset = offset, .length = length, .awaits = awaits, .next = s->count + 1};
    segment->after_skip = segment->next;
    segment->has_mail = b->mail >= offset && b->mail < offset + length;
    segment->has_end = b->end >= offset && b->end < offset + length;
    while (segment->first_id < s->id_count && s->ids[segment->first_id] + QUEUE_ID_LENGTH <= offset)
        segment->first_id++;
    while (segment->first_id + segment->ids < s->id_count && s->ids[segment->first_id + segment->ids] < offset + length)
        segment->ids++;
    s->count++;
}

/* Ends the segment being filled: what was put goes out now. A stdio-like buffer would have written its full pieces. */
static void flush(struct builder *b, char awaits) {
    size_t piece = b->traffic->buffer, length = b->script->length - b->start;
    if (length == 0) return;
    while (piece && length > piece) {
        add_segment(b, b->start, piece, 0);
        b->start += piece;
        length -= piece;
    }
    add_segment(b, b->start, length, awaits);
    b->script->segments[b->script->count - 1].packets = b->packets;
    b->start = b->script->length;
    b->packets = 0;
    b->mail = b->end = SIZE_MAX;
}

static bool wanted(const struct builder *b, char letter) { return !(b->script->protocol & never_bit(letter)); }

/* The command, and a flush when it gets a reply. */
static void command(struct builder *b, char letter, const void *data, size_t length) {
    if (!wanted(b, letter)) return;
    packet(b, letter, 0, data, length);
    bool replied = !(b->script->protocol & no_reply_bit(letter));
    if (replied || b->traffic->sendmail) flush(b, replied ? letter : 0);
}

/* Macros of the envelope steps go out even when the step itself is not wanted; Postfix has none for unwanted content. */
static void macros(struct builder *b, char stage, const void *data, size_t length) {
    if (!wanted(b, stage) && strchr("LNB", stage)) return;
    packet(b, 'D', stage, data, length);
    if (b->traffic->sendmail) flush(b, 0);
}

/* The filter may answer SKIP to the commands since `from`: on with what follows them. */
static void set_skip(struct builder *b, int from, char letter) {
    for (int i = from; i < b->script->count; i++)
        if (b->script->segments[i].awaits == letter) b->script->segments[i].after_skip = b->script->count;
}

static void put_greeting(struct builder *b) {
    static const char host[] = "mail.orchard.example\0" "4\x9e\x4a" "192.0.2.25";
    if (b->traffic->sendmail)
        macros(b, 'C', TEXT("j\0mx.harbour.example\0_\0mail.orchard.example [192.0.2.25]\0{daemon_name}\0MTA\0"
                            "{if_name}\0mx.harbour.example\0{if_addr}\000192.0.2.1\0"));
    else
        macros(b, 'C', TEXT("j\0mx.harbour.example\0{daemon_name}\0mx.harbour.example\0{daemon_addr}\000192.0.2.1\0"
                            "v\0Postfix 3.7.11\0_\0mail.orchard.example [192.0.2.25]\0"));
    command(b, 'C', host, sizeof host);
    macros(b, 'H', "", 0);
    command(b, 'H', "mail.orchard.example", sizeof "mail.orchard.example");
}

static void put_recipients(struct builder *b) {
    char text[256];
    int from = b->script->count;
    for (unsigned i = 0; i < b->traffic->recipients; i++) {
        /* Postfix has a queue id from the second recipient on, Sendmail shows none here. */
        const char *id = i && !b->traffic->sendmail ? "i%c" ID "%c" : "";
        int length = snprintf(text, sizeof text, id, 0, 0);
        length += snprintf(text + length, sizeof text - (size_t)length,
                           "{rcpt_addr}%canna%u@harbour.example%c{rcpt_host}%charbour.example%c{rcpt_mailer}%clocal%c", 0, i,
                           0, 0, 0, 0, 0);
        macros(b, 'R', text, (size_t)length);
        length = snprintf(text, sizeof text, "<anna%u@harbour.example>", i);
        command(b, 'R', text, (size_t)length + 1);
    }
    set_skip(b, from, 'R');
}

static void put_envelope(struct builder *b) {
    static const char sender[] = "<jiri@orchard.example>\0SIZE=6543\0BODY=8BITMIME";
    if (b->traffic->sendmail)
        macros(b, 'M', TEXT("i\0" ID "\0{mail_mailer}\0esmtp\0{mail_host}\0orchard.example.\0{mail_addr}\0"
                            "jiri@orchard.example\0"));
    else
        macros(b, 'M', TEXT("{mail_addr}\0jiri@orchard.example\0{mail_host}\0orchard.example\0{mail_mailer}\0smtp\0"));
    command(b, 'M', sender, sizeof sender);
    put_recipients(b);
    if (!b->traffic->sendmail) macros(b, 'T', TEXT("i\0" ID "\0"));
    command(b, 'T', NULL, 0);
    flush(b, 0); /* here Postfix passes the connection to another process, so nothing stays in the buffer */
}

static void put_headers(struct builder *b) {
    const char *space = b->script->protocol & LEADING_SPACE_BIT ? " " : "";
    char text[1024];
    int from = b->script->count;
    for (unsigned i = 0; i < b->traffic->headers; i++) {
        int length = i < FIELDS ? snprintf(text, sizeof text, "%s%c%s%s", fields[i][0], 0, space, fields[i][1])
                                : snprintf(text, sizeof text, "X-Field-%u%c%sas long as they usually are, this is number %u",
                                           i, 0, space, i);
        if (!b->traffic->sendmail) macros(b, 'L', TEXT("i\0" ID "\0"));
        command(b, 'L', text, (size_t)length + 1);
    }
    set_skip(b, from, 'L');
}

static void put_body(struct builder *b) {
    size_t size = b->traffic->body;
    if (!wanted(b, 'B') || size == 0) return;
    unsigned char *body = allocate(size);
    for (size_t i = 0; i < size; i++) body[i] = (unsigned char)(i % 72 == 70 ? '\r' : i % 72 == 71 ? '\n' : 'a' + i % 26);
    int from = b->script->count;
    for (size_t at = 0; at < size; at += CHUNK) {
        if (!b->traffic->sendmail) macros(b, 'B', TEXT("i\0" ID "\0"));
        command(b, 'B', body + at, size - at < CHUNK ? size - at : CHUNK);
    }
    set_skip(b, from, 'B');
    free(body);
}

static void put_content(struct builder *b) {
    put_headers(b);
    if (!b->traffic->sendmail) macros(b, 'N', TEXT("i\0" ID "\0"));
    command(b, 'N', NULL, 0);
    put_body(b);
    if (b->traffic->sendmail)
        macros(b, 'E', TEXT("{msg_id}\0<20251117081240.4711@orchard.example>\0"));
    else
        macros(b, 'E', TEXT("i\0" ID "\0"));
    command(b, 'E', NULL, 0);
}

/* Postfix aborts for the message and for the greeting; it keeps ABORT back until something else goes out. */
static void put_quit(struct builder *b) {
    if (!b->traffic->sendmail) {
        packet(b, 'A', 0, NULL, 0);
        packet(b, 'A', 0, NULL, 0);
    }
    packet(b, 'Q', 0, NULL, 0);
    flush(b, 0);
}

static void link_last(struct script *s, int next) { s->segments[s->count - 1].next = next; }

struct script *make_script(const struct traffic *traffic, uint32_t protocol) {
    struct script *s = allocate(sizeof *s);
    struct builder b = {.traffic = traffic, .script = s, .mail = SIZE_MAX, .end = SIZE_MAX};
    s->protocol = protocol;
    int content = s->count;
    put_content(&b);
    link_last(s, END);
    s->first = s->count;
    put_greeting(&b);
    put_envelope(&b);
    link_last(s, content);
    s->following = s->count;
    if (!traffic->sendmail) packet(&b, 'A', 0, NULL, 0);
    put_envelope(&b);
    link_last(s, content);
    s->greeting = s->count;
    put_greeting(&b);
    flush(&b, 0);
    link_last(s, END);
    s->quit = s->count;
    put_quit(&b);
    link_last(s, END);
    return s;
}

void put_queue_id(struct script *script, const struct segment *segment, uint32_t id) {
    static const char digits[] = "0123456789ABCDEF";
    char text[QUEUE_ID_LENGTH] = {'4', 'X'};
    for (int i = QUEUE_ID_LENGTH - 1; i >= 2; i--, id >>= 4) text[i] = digits[id & 15];
    for (size_t i = 0; i < segment->ids; i++)
        memcpy(script->bytes + script->ids[segment->first_id + i], text, QUEUE_ID_LENGTH);
}
