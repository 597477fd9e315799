/* The physical limit: one thread, epoll, frames looked at no further than length and letter.
 *
 * Answers `continue` to the commands of --answer and to every end of message, in one send per wake; the others are
 * negotiated without a reply, those of --never not at all. No filter that does anything can be cheaper.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common.h"

#define EVENTS 256
#define OUT_ROOM (1u << 20)

struct connection {
    int fd;
    unsigned char head[5]; /* of a frame that has not come whole yet */
    unsigned head_length;
    uint32_t skip;           /* bytes of its payload still to come */
    unsigned char offer[12]; /* payload of the negotiation */
    unsigned offer_length;
    const unsigned char *rest; /* what the socket did not take */
    size_t rest_length;
    unsigned char *copied; /* where the rest is kept when it lay in the shared buffer */
};

static struct {
    struct address address;
    bool answers[256];
    uint32_t protocol, actions;
    unsigned edits;
    size_t replace;
} settings;

static unsigned char in[256 * 1024];
static unsigned char *out;
static size_t out_length;
static unsigned char *final; /* edits and the last continue, ready to send */
static size_t final_length;
static int poller;

static bool watch(struct connection *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    return epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event) == 0;
}

/* What the socket does not take is kept, and nothing more is read meanwhile. */
static bool send_some(struct connection *c, const unsigned char *bytes, size_t length) {
    while (length) {
        ssize_t n = send(c->fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN) return false;
        if (n < 0) break;
        bytes += n;
        length -= (size_t)n;
    }
    bool kept_before = c->rest != NULL;
    c->rest = length ? bytes : NULL;
    c->rest_length = length;
    return kept_before == (c->rest != NULL) || watch(c, c->rest ? EPOLLOUT : EPOLLIN);
}

static bool flush(struct connection *c) {
    size_t length = out_length;
    out_length = 0;
    if (!send_some(c, out, length)) return false;
    if (!c->rest) return true;
    c->copied = allocate(c->rest_length);
    memcpy(c->copied, c->rest, c->rest_length);
    c->rest = c->copied;
    return true;
}

/* An MTA asks for nothing before it has read the answer, so nothing is added to a rest. */
static bool answer(struct connection *c, const unsigned char *bytes, size_t length) {
    if (length > OUT_ROOM - out_length && !flush(c)) return false;
    if (c->rest) return false;
    if (length > OUT_ROOM) return send_some(c, bytes, length); /* the final answer, which stays where it is */
    memcpy(out + out_length, bytes, length);
    out_length += length;
    return true;
}

static bool negotiate(struct connection *c) {
    unsigned char reply[17] = {0, 0, 0, 13, 'O', 0, 0, 0, 6};
    if (c->offer_length < sizeof c->offer) return false;
    put_u32(reply + 9, settings.actions & get_u32(c->offer + 4));
    put_u32(reply + 13, settings.protocol & get_u32(c->offer + 8));
    return answer(c, reply, sizeof reply);
}

/* A frame has come to its last byte. */
static bool finish(struct connection *c) {
    static const unsigned char go_on[5] = {0, 0, 0, 1, 'c'};
    unsigned char letter = c->head[4];
    c->head_length = 0;
    if (settings.answers[letter]) return answer(c, go_on, sizeof go_on);
    if (letter == 'E') return answer(c, final, final_length);
    return letter == 'O' ? negotiate(c) : letter != 'Q';
}

/* A frame's length and letter are there. */
static bool begin(struct connection *c) {
    uint32_t length = get_u32(c->head);
    if (length == 0) return false;
    c->skip = length - 1;
    return c->skip ? true : finish(c);
}

static bool payload(struct connection *c, const unsigned char *bytes, size_t length) {
    for (size_t i = 0; c->head[4] == 'O' && i < length && c->offer_length < sizeof c->offer; i++)
        c->offer[c->offer_length++] = bytes[i];
    c->skip -= (uint32_t)length;
    return c->skip ? true : finish(c);
}

static bool take(struct connection *c, const unsigned char *bytes, size_t length) {
    size_t at = 0;
    while (at < length) {
        if (c->skip) {
            size_t n = c->skip < length - at ? c->skip : length - at;
            if (!payload(c, bytes + at, n)) return false;
            at += n;
        } else if (c->head_length == 0 && length - at >= 5) { /* the usual case */
            memcpy(c->head, bytes + at, 5);
            at += 5;
            c->head_length = 5;
            if (!begin(c)) return false;
        } else {
            c->head[c->head_length++] = bytes[at++];
            if (c->head_length == 5 && !begin(c)) return false;
        }
    }
    return true;
}

static void drop(struct connection *c) {
    close(c->fd);
    free(c->copied);
    free(c);
}

/* The socket takes more of the rest. */
static void go_on_sending(struct connection *c) {
    if (!send_some(c, c->rest, c->rest_length)) {
        drop(c);
    } else if (!c->rest) {
        free(c->copied);
        c->copied = NULL;
    }
}

static void serve(struct connection *c) {
    if (c->rest) {
        go_on_sending(c);
        return;
    }
    ssize_t n = recv(c->fd, in, sizeof in, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        drop(c);
        return;
    }
    out_length = 0;
    bool open = take(c, in, (size_t)n);
    bool silent = out_length == 0 && !c->rest;
    if (out_length && !flush(c)) open = false;
    if (!open) {
        drop(c);
    } else if (silent && settings.address.tcp) { /* an MTA with Nagle waits for the acknowledgement */
        int on = 1;
        setsockopt(c->fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
    }
}

static void welcome(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return;
    struct connection *c = allocate(sizeof *c);
    c->fd = fd;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) != 0) drop(c);
}

static int listening(void) {
    struct address *address = &settings.address;
    int on = 1, fd = socket(address->socket.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket: %s", strerror(errno));
    if (address->tcp) { /* accepted sockets inherit TCP_NODELAY */
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    } else {
        unlink(address->path);
    }
    if (bind(fd, (struct sockaddr *)&address->socket, address->length) != 0) die("bind: %s", strerror(errno));
    if (listen(fd, 4096) != 0) die("listen: %s", strerror(errno));
    return fd;
}

static void put_final(char letter, const void *payload_bytes, size_t length) {
    put_u32(final + final_length, (uint32_t)length + 1);
    final[final_length + 4] = (unsigned char)letter;
    if (length) memcpy(final + final_length + 5, payload_bytes, length);
    final_length += 5 + length;
}

/* The last of the edits changes Subject, those before it add a field each, as the typical job does. */
static void prepare_final(void) {
    static const char subject[] = "\0\0\0\1Subject\0[bench] Minutes of the harbour meeting";
    char field[64];
    final = allocate(settings.replace + settings.replace / CHUNK * 5 + settings.edits * 96 + 64);
    for (unsigned i = 1; i < settings.edits; i++) {
        int length = snprintf(field, sizeof field, "X-Bench-%u%cseen by the benchmark", i, 0);
        put_final('h', field, (size_t)length + 1);
    }
    if (settings.edits) put_final('m', subject, sizeof subject);
    unsigned char *body = allocate(settings.replace);
    memset(body, 'x', settings.replace);
    for (size_t at = 0; at < settings.replace; at += CHUNK)
        put_final('b', body + at, settings.replace - at < CHUNK ? settings.replace - at : CHUNK);
    free(body);
    put_final('c', NULL, 0);
}

static void usage(FILE *to) {
    fputs("raw_loop --address unix:/path|inet:port@host [options]\n"
          "  --answer LETTERS   commands that get a reply, of CHMRTLNB (default all)\n"
          "  --never LETTERS    commands that are not asked for, of CHMRTLNB\n"
          "  --edits N          N header edits before the last continue\n"
          "  --replace BYTES    a new body of that size before the last continue\n",
          to);
}

static void parse_options(int count, char **arguments) {
    static const struct option known[] = {
        {"address", 1, 0, 'a'}, {"answer", 1, 0, 'r'}, {"never", 1, 0, 'n'}, {"edits", 1, 0, 'e'},
        {"replace", 1, 0, 'b'}, {"help", 0, 0, 'H'},   {0, 0, 0, 0},
    };
    const char *address = NULL, *answers = "CHMRTLNB", *never = "";
    for (int option; (option = getopt_long(count, arguments, "", known, NULL)) != -1;) switch (option) {
            case 'a': address = optarg; break;
            case 'r': answers = optarg; break;
            case 'n': never = optarg; break;
            case 'e': settings.edits = (unsigned)number("--edits", optarg); break;
            case 'b': settings.replace = number("--replace", optarg); break;
            default: usage(option == '?' ? stderr : stdout); exit(option == '?' ? 2 : 0);
        }
    if (!address || optind != count) {
        usage(stderr);
        exit(2);
    }
    parse_address(address, &settings.address);
    settings.actions = OFFERED_ACTIONS & ~0x100u; /* no macro lists */
    settings.protocol = never_bit('U');
    for (const char *all = "CHMRTLNB"; *all; all++) {
        settings.answers[(unsigned char)*all] = strchr(answers, *all) != NULL;
        if (strchr(never, *all))
            settings.protocol |= never_bit(*all);
        else if (!strchr(answers, *all))
            settings.protocol |= no_reply_bit(*all);
    }
}

int main(int count, char **arguments) {
    parse_options(count, arguments);
    raise_file_limit();
    out = allocate(OUT_ROOM);
    prepare_final();
    int listener = listening();
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN, .data.ptr = NULL};
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event) != 0) die("epoll: %s", strerror(errno));
    puts("listening");
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < ready; i++)
            if (events[i].data.ptr)
                serve(events[i].data.ptr);
            else
                welcome(listener);
    }
}
