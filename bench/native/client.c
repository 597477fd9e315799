#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <unistd.h>

struct counters counters;
uint64_t errors;
char error_samples[SAMPLES_KEPT][160];
struct play play;

static const unsigned char offer[17] = {0, 0, 0, 13, 'O', 0, 0, 0, 6, 0, 0, 1, 0xff, 0, 0x1f, 0xff, 0xff};
static unsigned char in[256 * 1024];
static uint32_t last_queue_id;

/* So many connections are closed with care: nothing may come after the last reply. It costs time, so not all are. */
static unsigned careful_closes = 20;

void note_error(const char *format, ...) {
    if (errors < SAMPLES_KEPT) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error_samples[errors], sizeof error_samples[0], format, arguments);
        va_end(arguments);
    }
    errors++;
}

void client_drop(struct client *c) {
    if (c->state != CLOSED) close(c->fd);
    c->state = CLOSED;
}

static enum outcome failed(struct client *c, const char *what) {
    if (c->state == NEGOTIATING || c->state == HELD || c->segment < 0)
        note_error("%s (%s)", what, c->state == HELD ? "idle" : "negotiation");
    else
        note_error("%s (waiting for the reply to %c, message %u of the connection)", what, c->awaits ? c->awaits : '-',
                   c->messages + 1);
    client_drop(c);
    return FAILED;
}

/* One script for each protocol word the filter's workers may answer with: one, as a rule. */
static struct script *script_for(uint32_t protocol) {
    static struct script *made[16];
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) {
        if (!made[i]) made[i] = make_script(&play.traffic, protocol);
        if (made[i]->protocol == protocol) return made[i];
    }
    return NULL;
}

static bool ask_room(struct client *c, bool ask) {
    if (c->asks_room == ask || play.poller < 0) return true;
    struct epoll_event event = {.events = ask ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c};
    c->asks_room = ask;
    return epoll_ctl(play.poller, EPOLL_CTL_MOD, c->fd, &event) == 0;
}

/* Writes at most `limit` bytes of the segment. True when it is all written. */
static bool write_segment(struct client *c, const struct segment *segment, size_t limit, bool *broken) {
    size_t left = segment->length - c->sent;
    int flags = MSG_NOSIGNAL | (play.poller < 0 ? 0 : MSG_DONTWAIT);
    if (c->sent == 0) {
        uint64_t now = segment->has_mail || segment->has_end ? now_ns() : 0;
        if (segment->has_mail) {
            c->mail_at = now;
            c->queue_id = ++last_queue_id;
        }
        if (segment->has_end) c->end_at = now;
    }
    if (segment->ids) put_queue_id(c->script, segment, c->queue_id);
    ssize_t n = send(c->fd, c->script->bytes + segment->offset + c->sent, left < limit ? left : limit, flags);
    if (n < 0) {
        *broken = errno != EAGAIN && errno != EINTR;
        return false;
    }
    c->sent += (size_t)n;
    return c->sent == segment->length;
}

/* Writes until a reply is due, the socket is full, or the script has ended. */
static enum outcome write_on(struct client *c, size_t limit) {
    while (c->segment != END) {
        const struct segment *segment = &c->script->segments[c->segment];
        bool broken = false;
        if (!write_segment(c, segment, limit, &broken)) {
            if (broken) return failed(c, strerror(errno));
            if (!c->slow && !ask_room(c, true)) return failed(c, "epoll");
            return GOES_ON;
        }
        counters.packets += segment->packets;
        counters.bytes += segment->length;
        c->sent = 0;
        if (!ask_room(c, false)) return failed(c, "epoll");
        if (segment->awaits) {
            c->awaits = segment->awaits;
            return GOES_ON;
        }
        c->segment = segment->next;
        if (c->slow) return GOES_ON;
    }
    c->state = HELD; /* only the greeting ends without a reply due */
    return HELD_NOW;
}

static enum outcome write_or_wait(struct client *c) { return c->slow ? GOES_ON : write_on(c, SIZE_MAX); }

static enum outcome begin(struct client *c, int segment) {
    c->state = WORKING;
    c->segment = segment;
    c->sent = 0;
    return write_or_wait(c);
}

static bool set_timeouts(int fd) {
    struct timeval limit = {.tv_sec = play.timeout_seconds};
    return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0 &&
           setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0;
}

/* Connecting blocks, which is short on one machine, and waits where the filter's backlog is full. */
enum outcome client_open(struct client *c) {
    char held_at = c->held_at;
    bool slow = c->slow;
    memset(c, 0, sizeof *c);
    c->held_at = held_at;
    c->slow = slow;
    c->segment = END;
    c->fd = socket(play.address.socket.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        note_error("socket: %s", strerror(errno));
        return FAILED;
    }
    c->state = NEGOTIATING;
    c->awaits = 'O';
    if (connect(c->fd, (struct sockaddr *)&play.address.socket, play.address.length) != 0)
        return failed(c, strerror(errno));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (play.poller < 0 ? !set_timeouts(c->fd) : epoll_ctl(play.poller, EPOLL_CTL_ADD, c->fd, &event) != 0)
        return failed(c, "epoll or socket option");
    if (send(c->fd, offer, sizeof offer, MSG_NOSIGNAL) != sizeof offer) return failed(c, strerror(errno));
    counters.packets++;
    counters.bytes += sizeof offer;
    return GOES_ON;
}

enum outcome client_next_message(struct client *c) { return begin(c, c->script->following); }

static enum outcome negotiated(struct client *c) {
    uint32_t version = get_u32(c->head + 5), actions = get_u32(c->head + 9), protocol = get_u32(c->head + 13);
    if (version < 2 || version > 6 || actions & ~OFFERED_ACTIONS || protocol & ~OFFERED_PROTOCOL)
        return failed(c, "the negotiation claims what was not offered");
    c->script = script_for(protocol);
    if (!c->script) return failed(c, "too many different negotiations");
    if (c->held_at == 'O') {
        c->state = HELD;
        return HELD_NOW;
    }
    return begin(c, c->held_at == 'H' ? c->script->greeting : c->script->first);
}

/* The reply to a step is there: what an MTA does next. */
static enum outcome answered(struct client *c) {
    const struct segment *segment = &c->script->segments[c->segment];
    char step = segment->awaits, verdict = c->verdict;
    counters.verdicts[(unsigned char)verdict]++;
    c->verdict = 0;
    if (step == 'E' || (verdict != 'c' && verdict != 's' && strchr("MRTLNB", step))) {
        bool refused_recipient = step == 'R' && strchr("rty", verdict);
        if (!refused_recipient) {
            c->messages++;
            c->state = PARKED;
            if (c->held_at == 'E') {
                c->state = HELD;
                return HELD_NOW;
            }
            return MESSAGE_DONE;
        }
    } else if (verdict == 's' ? strchr("RLB", step) == NULL : verdict != 'c') {
        return failed(c, "a verdict before MAIL, or SKIP out of place");
    }
    c->segment = verdict == 's' ? segment->after_skip : segment->next;
    return write_or_wait(c);
}

static bool is_modification(char letter) { return letter != 0 && strchr("+2-behimqp", letter) != NULL; }

/* A reply's length and letter are there. Returns what is wrong with it, or nothing. */
static const char *check_reply(struct client *c) {
    uint32_t length = get_u32(c->head);
    char letter = (char)c->head[4];
    if (length == 0 || length > (1u << 24)) return "a reply of impossible length";
    if (!c->awaits) return "a reply where none is due";
    c->skip = length - 1;
    if (c->awaits == 'O') return letter == 'O' && length >= 13 ? NULL : "not a negotiation";
    if (c->awaits == 'E' && is_modification(letter)) return NULL;
    if (letter == 0 || !strchr("cartdys", letter)) return "an unknown reply";
    return letter == 'y' || length == 1 ? NULL : "a reply longer than it may be";
}

/* A reply is there to its last byte. */
static void finish_reply(struct client *c) {
    char letter = (char)c->head[4];
    c->head_length = 0;
    if (c->awaits == 'E' && is_modification(letter)) {
        counters.modifications += letter != 'p';
    } else {
        c->verdict = letter;
        c->awaits = 0;
    }
}

/* Cuts what was read into replies. Returns what is wrong, or nothing. */
static const char *take(struct client *c, const unsigned char *bytes, size_t length) {
    size_t at = 0;
    while (at < length) {
        unsigned whole = c->awaits == 'O' && c->head_length >= 5 && c->skip >= 12 ? 17 : 5;
        if (c->head_length < whole) {
            c->head[c->head_length++] = bytes[at++];
            if (c->head_length == 17) c->skip -= 12;
            if (c->head_length == 5) {
                const char *wrong = check_reply(c);
                if (wrong) return wrong;
            }
        } else {
            size_t n = c->skip < length - at ? c->skip : length - at;
            c->skip -= (uint32_t)n;
            at += n;
        }
        if (c->head_length >= (c->awaits == 'O' ? 17 : 5) && c->skip == 0) finish_reply(c);
    }
    return NULL;
}

enum outcome client_readable(struct client *c) {
    ssize_t n = recv(c->fd, in, sizeof in, play.poller < 0 ? 0 : MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) return GOES_ON;
    if (n < 0 && errno == EAGAIN) return play.poller < 0 ? failed(c, "no reply in time") : GOES_ON;
    if (n < 0) return failed(c, strerror(errno));
    if (n == 0) return failed(c, "the filter closed the connection");
    const char *wrong = take(c, in, (size_t)n);
    if (wrong) return failed(c, wrong);
    if (!c->verdict) return GOES_ON;
    if (c->head_length) return failed(c, "more than one reply");
    if (c->state != NEGOTIATING) return answered(c);
    c->verdict = 0;
    return negotiated(c);
}

enum outcome client_writable(struct client *c) { return c->asks_room ? write_on(c, SIZE_MAX) : GOES_ON; }

enum outcome client_slow_turn(struct client *c) {
    if (c->state != WORKING || c->awaits || c->segment == END) return GOES_ON;
    return write_on(c, play.slow_bytes);
}

/* The filter must close now, and send nothing before. */
static void close_with_care(struct client *c) {
    unsigned char byte;
    set_timeouts(c->fd);
    ssize_t n = recv(c->fd, &byte, 1, 0);
    if (n > 0) note_error("a reply after the last one that was due");
    if (n < 0 && errno != ECONNRESET) note_error("not closed after QUIT: %s", strerror(errno));
}

void client_quit(struct client *c) {
    const struct segment *segment = &c->script->segments[c->script->quit];
    ssize_t n = send(c->fd, c->script->bytes + segment->offset, segment->length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n != (ssize_t)segment->length) note_error("QUIT: %s", n < 0 ? strerror(errno) : "not written whole");
    counters.packets += segment->packets;
    counters.bytes += segment->length;
    if (careful_closes) {
        careful_closes--;
        close_with_care(c);
    }
    client_drop(c);
}
