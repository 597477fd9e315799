/* The reference filter on libmilter: what an author in C writes, and keeps, for the same jobs as bench/filters.py.
 *
 * noop: every callback is set and continues. typical: client address, queue id, sender, recipients, all header fields
 * and the length of the body are kept for each message; two fields are added and Subject is changed at its end.
 * look: the length of the body. replace: the same, and a new body of --replace bytes. With --wait-ms each message waits
 * at its end, as for an answer of someone else, before anything is changed.
 */
#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libmilter/mfapi.h>

#include "common.h"

struct texts {
    char **items;
    unsigned count, room;
};

struct message {
    char *queue_id, *sender;
    struct texts recipients, names, values;
    size_t body;
};

struct connection {
    char *client;
    struct message *message;
};

static unsigned char *new_body;
static size_t new_body_length;
static struct timespec delay;

static char *copy(const char *text) {
    size_t length = text ? strlen(text) : 0;
    char *copied = allocate(length + 1);
    if (length) memcpy(copied, text, length);
    return copied;
}

static void keep(struct texts *texts, const char *text) {
    if (texts->count == texts->room) {
        texts->room = texts->room ? texts->room * 2 : 8;
        texts->items = realloc(texts->items, texts->room * sizeof *texts->items);
        if (!texts->items) die("out of memory");
    }
    texts->items[texts->count++] = copy(text);
}

static void forget(struct texts *texts) {
    for (unsigned i = 0; i < texts->count; i++) free(texts->items[i]);
    free(texts->items);
}

static void end_message(struct connection *c) {
    struct message *message = c ? c->message : NULL;
    if (!message) return;
    free(message->queue_id);
    free(message->sender);
    forget(&message->recipients);
    forget(&message->names);
    forget(&message->values);
    free(message);
    c->message = NULL;
}

static struct message *current(SMFICTX *context) { return ((struct connection *)smfi_getpriv(context))->message; }

static void print_address(const _SOCK_ADDR *address, char *text, size_t room) {
    snprintf(text, room, "unknown");
    if (address && address->sa_family == AF_INET)
        inet_ntop(AF_INET, &((const struct sockaddr_in *)address)->sin_addr, text, (socklen_t)room);
    else if (address && address->sa_family == AF_INET6)
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)address)->sin6_addr, text, (socklen_t)room);
}

static sfsistat typical_connect(SMFICTX *context, char *host, _SOCK_ADDR *address) {
    char text[INET6_ADDRSTRLEN];
    struct connection *c = allocate(sizeof *c);
    (void)host;
    print_address(address, text, sizeof text);
    c->client = copy(text);
    smfi_setpriv(context, c);
    return SMFIS_CONTINUE;
}

static sfsistat typical_mail(SMFICTX *context, char **path) {
    struct connection *c = smfi_getpriv(context);
    end_message(c);
    c->message = allocate(sizeof *c->message);
    c->message->sender = copy(path[0]);
    return SMFIS_CONTINUE;
}

static sfsistat typical_rcpt(SMFICTX *context, char **path) {
    keep(&current(context)->recipients, path[0]);
    return SMFIS_CONTINUE;
}

static sfsistat typical_header(SMFICTX *context, char *name, char *value) {
    struct message *message = current(context);
    keep(&message->names, name);
    keep(&message->values, value);
    return SMFIS_CONTINUE;
}

static sfsistat typical_body(SMFICTX *context, unsigned char *chunk, size_t length) {
    (void)chunk;
    current(context)->body += length;
    return SMFIS_CONTINUE;
}

static sfsistat typical_end(SMFICTX *context) {
    struct connection *c = smfi_getpriv(context);
    struct message *message = c->message;
    char text[1024];
    if (delay.tv_sec || delay.tv_nsec) nanosleep(&delay, NULL);
    message->queue_id = copy(smfi_getsymval(context, (char *)"i"));
    snprintf(text, sizeof text, "%s from %s for %u", message->queue_id, message->sender, message->recipients.count);
    smfi_addheader(context, (char *)"X-Bench-1", text);
    snprintf(text, sizeof text, "%u fields, %zu bytes, client %s", message->names.count, message->body, c->client);
    smfi_addheader(context, (char *)"X-Bench-2", text);
    smfi_chgheader(context, (char *)"Subject", 1, (char *)"[bench] Minutes of the harbour meeting");
    end_message(c);
    return SMFIS_CONTINUE;
}

static sfsistat typical_abort(SMFICTX *context) {
    end_message(smfi_getpriv(context));
    return SMFIS_CONTINUE;
}

static sfsistat typical_close(SMFICTX *context) {
    struct connection *c = smfi_getpriv(context);
    if (c) {
        end_message(c);
        free(c->client);
        free(c);
        smfi_setpriv(context, NULL);
    }
    return SMFIS_CONTINUE;
}

/* Looking at bodies alone needs a counter, made with the first chunk. */
static sfsistat look_body(SMFICTX *context, unsigned char *chunk, size_t length) {
    size_t *total = smfi_getpriv(context);
    (void)chunk;
    if (!total) smfi_setpriv(context, total = allocate(sizeof *total));
    *total += length;
    return SMFIS_CONTINUE;
}

static sfsistat look_reset(SMFICTX *context) {
    free(smfi_getpriv(context));
    smfi_setpriv(context, NULL);
    return SMFIS_CONTINUE;
}

static sfsistat replace_end(SMFICTX *context) {
    smfi_replacebody(context, new_body, (int)new_body_length);
    return look_reset(context);
}

static sfsistat noop(SMFICTX *context) { return (void)context, SMFIS_CONTINUE; }
static sfsistat noop_text(SMFICTX *context, char *text) { return (void)text, noop(context); }
static sfsistat noop_command(SMFICTX *context, const char *text) { return (void)text, noop(context); }
static sfsistat noop_path(SMFICTX *context, char **path) { return (void)path, noop(context); }
static sfsistat noop_connect(SMFICTX *context, char *host, _SOCK_ADDR *address) {
    return (void)host, (void)address, noop(context);
}
static sfsistat noop_header(SMFICTX *context, char *name, char *value) {
    return (void)name, (void)value, noop(context);
}
static sfsistat noop_body(SMFICTX *context, unsigned char *chunk, size_t length) {
    return (void)chunk, (void)length, noop(context);
}

static struct smfiDesc make_noop(void) {
    return (struct smfiDesc){
        .xxfi_connect = noop_connect, .xxfi_helo = noop_text,  .xxfi_envfrom = noop_path,
        .xxfi_envrcpt = noop_path,    .xxfi_data = noop,       .xxfi_header = noop_header,
        .xxfi_eoh = noop,             .xxfi_body = noop_body,  .xxfi_eom = noop,
        .xxfi_abort = noop,           .xxfi_close = noop,      .xxfi_unknown = noop_command,
    };
}

static struct smfiDesc make_filter(const char *job) {
    struct smfiDesc filter;
    if (strcmp(job, "noop") == 0)
        filter = make_noop();
    else if (strcmp(job, "typical") == 0)
        filter = (struct smfiDesc){
            .xxfi_connect = typical_connect, .xxfi_envfrom = typical_mail, .xxfi_envrcpt = typical_rcpt,
            .xxfi_header = typical_header,   .xxfi_body = typical_body,    .xxfi_eom = typical_end,
            .xxfi_abort = typical_abort,     .xxfi_close = typical_close,
        };
    else if (strcmp(job, "look") == 0 || strcmp(job, "replace") == 0)
        filter = (struct smfiDesc){
            .xxfi_body = look_body,   .xxfi_eom = *job == 'l' ? look_reset : replace_end,
            .xxfi_abort = look_reset, .xxfi_close = look_reset,
        };
    else
        die("--job: noop, typical, look or replace, not %s", job);
    filter.xxfi_name = (char *)"bench";
    filter.xxfi_version = SMFI_VERSION;
    filter.xxfi_flags = SMFIF_ADDHDRS | SMFIF_CHGHDRS | SMFIF_CHGBODY;
    return filter;
}

static void set_delay(unsigned ms) {
    delay = (struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l};
}

static void usage(FILE *to) {
    fputs("libmilter_filter --address unix:/path|inet:port@host [options]\n"
          "  --job noop|typical|look|replace   what is done for each message (typical)\n"
          "  --replace BYTES                   size of the body that replaces another (1048576)\n"
          "  --wait-ms N                       how long typical waits at the end of each message (0)\n"
          "  --backlog N                       connections that may wait to be accepted (4096)\n",
          to);
}

int main(int count, char **arguments) {
    static const struct option known[] = {
        {"address", 1, 0, 'a'}, {"job", 1, 0, 'j'},  {"replace", 1, 0, 'r'},
        {"wait-ms", 1, 0, 'w'}, {"backlog", 1, 0, 'b'}, {"help", 0, 0, 'H'}, {0, 0, 0, 0},
    };
    const char *job = "typical";
    char *address = NULL;
    int backlog = 4096;
    new_body_length = 1 << 20;
    for (int option; (option = getopt_long(count, arguments, "", known, NULL)) != -1;) switch (option) {
            case 'a': address = optarg; break;
            case 'j': job = optarg; break;
            case 'r': new_body_length = (size_t)number("--replace", optarg); break;
            case 'w': set_delay((unsigned)number("--wait-ms", optarg)); break;
            case 'b': backlog = (int)number("--backlog", optarg); break;
            default: usage(option == '?' ? stderr : stdout); return option == '?' ? 2 : 0;
        }
    if (!address || optind != count) {
        usage(stderr);
        return 2;
    }
    raise_file_limit();
    new_body = allocate(new_body_length);
    memset(new_body, 'x', new_body_length);
    if (smfi_setconn(address) != MI_SUCCESS || smfi_register(make_filter(job)) != MI_SUCCESS ||
        smfi_setbacklog(backlog) != MI_SUCCESS || smfi_opensocket(1) != MI_SUCCESS)
        die("cannot listen at %s", address);
    return smfi_main() == MI_SUCCESS ? 0 : 1;
}
