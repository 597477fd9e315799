/* One connection of the MTA to the filter: plays a script, checks every answer. */
#ifndef BENCH_CLIENT_H
#define BENCH_CLIENT_H

#include "traffic.h"

enum state { CLOSED, NEGOTIATING, WORKING, HELD, PARKED };

struct client {
    int fd;
    enum state state;
    struct script *script;
    int segment;         /* being written, or written and answered last */
    size_t sent;         /* of that segment */
    bool asks_room;      /* waits until the socket takes more */
    bool slow;           /* dribbles: is given time to write by slow_turn() alone */
    char held_at;        /* 'O', 'H' or 'E': an idle connection stops there; 0: goes on */
    char awaits;         /* command whose reply is due; 0: none */
    char verdict;        /* the final reply just read; 0: none */
    uint32_t queue_id;
    uint32_t messages;   /* on this connection */
    uint64_t mail_at, end_at;
    unsigned char head[17]; /* of a reply that has not come whole: length, letter, and the OPTNEG words */
    unsigned head_length;
    uint32_t skip;
};

/* What is counted while measuring; set to zero when the warm-up is over. */
struct counters {
    uint64_t messages, slow_messages, modifications, packets, bytes;
    uint64_t verdicts[256];
};
extern struct counters counters;

/* Errors count from the very start. */
extern uint64_t errors;
#define SAMPLES_KEPT 5
extern char error_samples[SAMPLES_KEPT][160];
void note_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

struct play {
    struct address address;
    struct traffic traffic;
    int poller;               /* -1: sockets block, and are read one at a time */
    unsigned timeout_seconds;
    size_t slow_bytes;
};
extern struct play play;

/* Each tells what became of the client; CLOSED after an error. */
enum outcome { GOES_ON, MESSAGE_DONE, HELD_NOW, FAILED };

enum outcome client_open(struct client *c);
enum outcome client_next_message(struct client *c);
enum outcome client_readable(struct client *c);
enum outcome client_writable(struct client *c);
enum outcome client_slow_turn(struct client *c);
void client_quit(struct client *c);
void client_drop(struct client *c);

#endif
