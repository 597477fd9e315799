/* Load generator: plays the side of the MTA, as Postfix 3.7 or Sendmail 8.17 do it, on many connections at once.
 *
 * One thread, everything it writes made up beforehand. Prints one JSON object; what it counts, and what a latency is,
 * is told by --help.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "client.h"
#include "samples.h"

#define EVENTS 512
#define TOGETHER 16 /* connections opened before their negotiations are waited for */
#define ERRORS_BEARABLE 1000

static struct {
    unsigned connections, messages_per_connection, idle, slow, slow_ms;
    char idle_state;
    uint64_t total, warmup;
    double duration;
    bool gate, hold;
} settings = {.connections = 50, .messages_per_connection = 1, .slow_ms = 10, .idle_state = 'H', .duration = 5};

static struct client *clients; /* the idle ones first */
static struct samples whole, dot;

/* A stretch of work: the warm-up or the measurement. */
static struct {
    uint64_t started, limit; /* messages */
    uint64_t until;          /* no message is begun later */
    unsigned working;        /* clients with a message in work, the slow ones aside */
    unsigned negotiating;
    uint64_t began_at, ended_at;
} phase;

static bool phase_over(void) {
    return phase.started >= phase.limit || errors >= ERRORS_BEARABLE || (phase.until && now_ns() >= phase.until);
}

static void arrived(struct client *c, enum outcome outcome);

/* Gives a client its next message, on its connection or on a new one. */
static void begin_message(struct client *c) {
    if (phase_over()) return;
    phase.started++;
    if (!c->slow) phase.working++;
    if (c->state == PARKED) {
        arrived(c, client_next_message(c));
    } else {
        enum outcome outcome = client_open(c);
        if (outcome == GOES_ON) phase.negotiating++;
        arrived(c, outcome);
    }
}

static void message_done(struct client *c) {
    uint64_t now = now_ns();
    phase.ended_at = now;
    if (c->slow) {
        counters.slow_messages++;
    } else {
        phase.working--;
        counters.messages++;
        add_sample(&whole, now - c->mail_at);
        if (c->end_at >= c->mail_at) add_sample(&dot, now - c->end_at);
    }
    if (c->messages >= settings.messages_per_connection) client_quit(c);
}

/* What follows from an event of a client; new messages begin here, one after another, not one within another. */
static void arrived(struct client *c, enum outcome outcome) {
    if (outcome == MESSAGE_DONE) message_done(c);
    if (outcome == FAILED && !c->held_at && !c->slow && phase.working) phase.working--;
    if (outcome == MESSAGE_DONE || (outcome == FAILED && !c->held_at)) begin_message(c);
}

static void handle(struct client *c, uint32_t events) {
    enum state before = c->state;
    if (before == CLOSED) return;
    enum outcome outcome = GOES_ON;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) outcome = client_readable(c);
    if (before == NEGOTIATING && c->state != NEGOTIATING && phase.negotiating) phase.negotiating--;
    if (before == PARKED && outcome == FAILED) return; /* between two messages: an error, but no message is lost */
    if (outcome == GOES_ON && events & EPOLLOUT) outcome = client_writable(c);
    arrived(c, outcome);
}

static void slow_turns(uint64_t *next) {
    uint64_t now = now_ns();
    if (settings.slow == 0 || now < *next) return;
    *next = now + settings.slow_ms * 1000000ull;
    struct client *busy = clients + settings.idle;
    for (unsigned i = 0; i < settings.slow; i++) arrived(&busy[i], client_slow_turn(&busy[i]));
}

/* Handles what is ready, waiting for it when `wait`; false when nothing was for the whole time limit. */
static bool turn(bool wait) {
    static struct epoll_event events[EVENTS];
    static uint64_t next_slow;
    static unsigned waited_ms;
    unsigned wait_ms = !wait ? 0 : settings.slow ? settings.slow_ms : 1000;
    int ready = epoll_wait(play.poller, events, EVENTS, (int)wait_ms);
    if (ready < 0 && errno != EINTR) die("epoll_wait: %s", strerror(errno));
    for (int i = 0; i < ready; i++) handle(events[i].data.ptr, events[i].events);
    slow_turns(&next_slow);
    waited_ms = ready > 0 ? 0 : waited_ms + wait_ms;
    if (waited_ms < play.timeout_seconds * 1000) return true;
    waited_ms = 0;
    return false;
}

static void give_up(struct client *some, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        if (some[i].state == NEGOTIATING || some[i].state == WORKING) {
            note_error("no reply in time (waiting for the reply to %c)", some[i].awaits ? some[i].awaits : '-');
            client_drop(&some[i]);
        }
    phase.working = phase.negotiating = 0;
}

/* One at a time, no epoll: what is measured is the filter's latency and the kernel's. */
static void run_blocking(struct client *c) {
    begin_message(c);
    while (c->state == NEGOTIATING || c->state == WORKING) handle(c, EPOLLIN);
}

static void run_polling(struct client *busy) {
    for (unsigned i = 0; i < settings.connections; i++) {
        begin_message(&busy[i]);
        while (phase.negotiating >= TOGETHER)
            if (!turn(true)) give_up(busy, settings.connections);
    }
    while (phase.working)
        if (!turn(true)) give_up(busy, settings.connections);
    for (unsigned i = 0; i < settings.slow; i++) client_drop(&busy[i]);
}

static void run_phase(uint64_t limit, double seconds) {
    struct client *busy = clients + settings.idle;
    memset(&phase, 0, sizeof phase);
    memset(&counters, 0, sizeof counters);
    phase.limit = limit;
    phase.began_at = phase.ended_at = now_ns();
    if (seconds > 0) phase.until = phase.began_at + (uint64_t)(seconds * 1e9);
    if (settings.connections == 0) return;
    if (play.poller < 0)
        run_blocking(busy);
    else
        run_polling(busy);
}

static void hold_idle(void) {
    unsigned open = 0;
    for (unsigned i = 0; i < settings.idle; i++) {
        struct client *c = &clients[i];
        c->held_at = settings.idle_state;
        if (client_open(c) != GOES_ON) continue;
        phase.negotiating++;
        open++;
        while (phase.negotiating >= TOGETHER)
            if (!turn(true)) give_up(clients, settings.idle);
    }
    for (unsigned i = 0; open && i < settings.idle; i++)
        while (clients[i].state == NEGOTIATING || clients[i].state == WORKING)
            if (!turn(true)) give_up(clients, settings.idle);
}

/* Those the filter has not closed meanwhile. */
static unsigned count_held(void) {
    unsigned held = 0;
    if (settings.idle) turn(false);
    for (unsigned i = 0; i < settings.idle; i++) held += clients[i].state == HELD;
    return held;
}

static void wait_for_line(const char *announcement) {
    int c;
    if (announcement) {
        puts(announcement);
        fflush(stdout);
    }
    do c = getchar();
    while (c != '\n' && c != EOF);
}

static void print_string(const char *text) {
    putchar('"');
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            printf("\\%c", *text);
        else if ((unsigned char)*text < ' ')
            putchar(' ');
        else
            putchar(*text);
    putchar('"');
}

static void print_errors(void) {
    printf("\"errors\": %llu, \"error_samples\": [", (unsigned long long)errors);
    for (unsigned i = 0; i < errors && i < SAMPLES_KEPT; i++) {
        if (i) printf(", ");
        print_string(error_samples[i]);
    }
    printf("], ");
}

static void print_verdicts(void) {
    const char *separator = "";
    printf("\"verdicts\": {");
    for (int letter = 0; letter < 256; letter++) {
        if (!counters.verdicts[letter]) continue;
        printf("%s\"%c\": %llu", separator, letter, (unsigned long long)counters.verdicts[letter]);
        separator = ", ";
    }
    printf("}, ");
}

static void print_report(double cpu, unsigned held) {
    double seconds = (double)(phase.ended_at - phase.began_at) / 1e9;
    uint64_t messages = counters.messages;
    sort_samples(&whole);
    sort_samples(&dot);
    printf("{\"messages\": %llu, \"seconds\": %.6f, ", (unsigned long long)messages, seconds);
    printf("\"messages_per_second\": %.1f, ", seconds > 0 ? (double)messages / seconds : 0.0);
    print_errors();
    printf("\"p50_us\": %.1f, \"p99_us\": %.1f, ", percentile(&whole, 50), percentile(&whole, 99));
    printf("\"dot_p50_us\": %.1f, \"dot_p99_us\": %.1f, ", percentile(&dot, 50), percentile(&dot, 99));
    printf("\"own_cpu_s\": %.6f, ", cpu);
    printf("\"packets_sent\": %llu, ", (unsigned long long)counters.packets);
    printf("\"bytes_sent\": %llu, ", (unsigned long long)counters.bytes);
    print_verdicts();
    printf("\"modifications_per_message\": %.3f, ", messages ? (double)counters.modifications / (double)messages : 0.0);
    printf("\"slow_messages\": %llu, ", (unsigned long long)counters.slow_messages);
    printf("\"idle_held\": %u}\n", held);
    fflush(stdout);
}

static void usage(FILE *to) {
    fputs("load --address unix:/path|inet:port@host [options]\n"
          "  --connections N              busy at the same time (50); with 1, sockets block and there is no epoll\n"
          "  --messages-per-connection M  then QUIT, close, connect anew (1)\n"
          "  --duration S | --total N     begin messages for S seconds (5), or N of them\n"
          "  --warmup N                   messages before that are not counted (0)\n"
          "  --gate                       print \"ready\" after the warm-up, go on at a line on stdin; the same (\"done\")\n"
          "                               before the connections that are still open are closed\n"
          "  --headers N --recipients N --body BYTES   of each message (20, 1, 4096)\n"
          "  --buffer BYTES               what needs no reply is written in pieces of this size (0: one piece)\n"
          "  --mta postfix|sendmail       sendmail: MACRO and command in a write each, no ABORT after a message\n"
          "  --idle N                     connections held idle beside (0)\n"
          "  --idle-state negotiated|helo|message      how far those have come (helo)\n"
          "  --slow N --slow-bytes N --slow-ms N       that many of the busy ones dribble (0, 16 bytes each 10 ms)\n"
          "  --timeout S                  give up when nothing happens for so long (30)\n"
          "  --hold                       after the report, keep the idle connections until stdin ends\n"
          "p50_us, p99_us: from the first byte of MAIL (its macros) to the final reply of the message; dot_p50_us,\n"
          "dot_p99_us: from the write that carries the end of message. Slow clients' messages are counted apart.\n",
          to);
}

static char idle_state(const char *text) {
    if (strcmp(text, "negotiated") == 0) return 'O';
    if (strcmp(text, "helo") == 0) return 'H';
    if (strcmp(text, "message") == 0) return 'E';
    die("--idle-state: negotiated, helo or message, not %s", text);
}

static bool is_sendmail(const char *text) {
    if (strcmp(text, "postfix") != 0 && strcmp(text, "sendmail") != 0) die("--mta: postfix or sendmail, not %s", text);
    return *text == 's';
}

static void set_option(int option, const char *name, const char *text) {
    switch (option) {
        case 'a': parse_address(text, &play.address); break;
        case 'c': settings.connections = (unsigned)number(name, text); break;
        case 'm': settings.messages_per_connection = (unsigned)number(name, text); break;
        case 'd': settings.duration = strtod(text, NULL); break;
        case 't': settings.total = number(name, text); break;
        case 'w': settings.warmup = number(name, text); break;
        case 'h': play.traffic.headers = (unsigned)number(name, text); break;
        case 'r': play.traffic.recipients = (unsigned)number(name, text); break;
        case 'b': play.traffic.body = number(name, text); break;
        case 'f': play.traffic.buffer = number(name, text); break;
        case 'p': play.traffic.sendmail = is_sendmail(text); break;
        case 'i': settings.idle = (unsigned)number(name, text); break;
        case 's': settings.idle_state = idle_state(text); break;
        case 'S': settings.slow = (unsigned)number(name, text); break;
        case 'B': play.slow_bytes = number(name, text); break;
        case 'M': settings.slow_ms = (unsigned)number(name, text); break;
        case 'T': play.timeout_seconds = (unsigned)number(name, text); break;
        case 'g': settings.gate = true; break;
        case 'o': settings.hold = true; break;
        default: usage(option == '?' ? stderr : stdout); exit(option == '?' ? 2 : 0);
    }
}

static void parse_options(int count, char **arguments) {
    static const struct option known[] = {
        {"address", 1, 0, 'a'}, {"connections", 1, 0, 'c'}, {"messages-per-connection", 1, 0, 'm'},
        {"duration", 1, 0, 'd'}, {"total", 1, 0, 't'}, {"warmup", 1, 0, 'w'}, {"headers", 1, 0, 'h'},
        {"recipients", 1, 0, 'r'}, {"body", 1, 0, 'b'}, {"buffer", 1, 0, 'f'}, {"mta", 1, 0, 'p'},
        {"idle", 1, 0, 'i'}, {"idle-state", 1, 0, 's'}, {"slow", 1, 0, 'S'}, {"slow-bytes", 1, 0, 'B'},
        {"slow-ms", 1, 0, 'M'}, {"timeout", 1, 0, 'T'}, {"gate", 0, 0, 'g'}, {"hold", 0, 0, 'o'},
        {"help", 0, 0, 'H'}, {0, 0, 0, 0},
    };
    int index = 0;
    play.traffic = (struct traffic){.headers = 20, .recipients = 1, .body = 4096};
    play.timeout_seconds = 30;
    play.slow_bytes = 16;
    for (int option; (option = getopt_long(count, arguments, "", known, &index)) != -1;)
        set_option(option, option == '?' ? "" : known[index].name, optarg);
    if (optind != count || play.address.length == 0) {
        usage(stderr);
        exit(2);
    }
    if (settings.messages_per_connection == 0 || play.timeout_seconds == 0 || play.slow_bytes == 0)
        die("there must be a message per connection, a timeout, and bytes to write");
    if (settings.slow >= settings.connections && settings.slow) die("--slow: there must be other busy connections");
}

int main(int count, char **arguments) {
    parse_options(count, arguments);
    raise_file_limit();
    clients = allocate((size_t)(settings.idle + settings.connections) * sizeof *clients);
    play.poller = epoll_create1(EPOLL_CLOEXEC);
    if (play.poller < 0) die("epoll: %s", strerror(errno));
    hold_idle();
    int poller = play.poller;
    if (settings.connections == 1) play.poller = -1;
    for (unsigned i = 0; i < settings.slow; i++) clients[settings.idle + i].slow = true;
    if (settings.warmup) run_phase(settings.warmup, 0);
    if (settings.gate) wait_for_line("ready");
    whole.count = dot.count = 0;
    double cpu = own_cpu_seconds();
    run_phase(settings.total ? settings.total : UINT64_MAX, settings.total ? 0 : settings.duration);
    cpu = own_cpu_seconds() - cpu;
    if (settings.gate) wait_for_line("done");
    for (unsigned i = 0; i < settings.connections; i++)
        if (clients[settings.idle + i].state == PARKED) client_quit(&clients[settings.idle + i]);
    play.poller = poller;
    print_report(cpu, count_held());
    if (settings.hold)
        while (getchar() != EOF) continue;
    return errors ? 1 : 0;
}
