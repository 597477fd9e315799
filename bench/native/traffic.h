/* What the MTA writes, made up beforehand: which bytes go out in one write, and where a reply must be read. */
#ifndef BENCH_TRAFFIC_H
#define BENCH_TRAFFIC_H

#include "common.h"

struct traffic {
    bool sendmail;      /* MACRO and command in a write each, no ABORT after a message, Sendmail's macros */
    unsigned headers;
    unsigned recipients;
    size_t body;
    size_t buffer;      /* what piles up without a reply goes out in pieces of this size; 0: in one piece */
};

#define END (-1)

/* One write. */
struct segment {
    size_t offset, length;
    unsigned packets;
    char awaits;      /* the command whose reply must be read before the next segment; 0: none */
    bool has_mail;    /* begins a message, as latency sees it */
    bool has_end;     /* carries the end of message */
    int next;         /* END: nothing more to write */
    int after_skip;   /* where to go on when the filter wants no more of this kind */
    size_t first_id, ids;
};

/* All that an MTA writes to a filter which negotiated one protocol word. */
struct script {
    uint32_t protocol;
    unsigned char *bytes;
    size_t length, room;
    struct segment *segments;
    int count, segment_room;
    size_t *ids; /* where the queue id stands in the bytes */
    size_t id_count, id_room;
    int first;     /* CONNECT, HELO and the first message */
    int following; /* each later message, with the ABORT that is due */
    int greeting;  /* CONNECT and HELO alone */
    int quit;
};

#define QUEUE_ID_LENGTH 10

struct script *make_script(const struct traffic *traffic, uint32_t protocol);

/* Writes this message's queue id into a segment; the other connections' writes do the same before theirs. */
void put_queue_id(struct script *script, const struct segment *segment, uint32_t id);

#endif
