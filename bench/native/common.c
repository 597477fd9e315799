#define _GNU_SOURCE
#include "common.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <time.h>

static const struct {
    char letter;
    uint32_t never, no_reply;
} bits[] = {
    {'C', 0x1, 0x1000},    {'H', 0x2, 0x2000}, {'M', 0x4, 0x4000},   {'R', 0x8, 0x8000},   {'T', 0x200, 0x10000},
    {'U', 0x100, 0x20000}, {'L', 0x20, 0x80},  {'N', 0x40, 0x40000}, {'B', 0x10, 0x80000},
};

uint32_t never_bit(char letter) {
    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++)
        if (bits[i].letter == letter) return bits[i].never;
    return 0;
}

uint32_t no_reply_bit(char letter) {
    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++)
        if (bits[i].letter == letter) return bits[i].no_reply;
    return 0;
}

void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

void *allocate(size_t size) {
    void *memory = calloc(1, size ? size : 1);
    if (!memory) die("out of memory (%zu bytes)", size);
    return memory;
}

unsigned long long number(const char *option, const char *text) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-') die("%s: not a number: %s", option, text);
    return value;
}

static void parse_unix(const char *path, struct address *address) {
    struct sockaddr_un *name = (struct sockaddr_un *)&address->socket;
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof name->sun_path) die("socket path empty or too long: %s", path);
    name->sun_family = AF_UNIX;
    memcpy(name->sun_path, path, length + 1);
    memcpy(address->path, path, length + 1);
    address->length = sizeof *name;
}

static void parse_inet(const char *text, struct address *address) {
    struct sockaddr_in *name = (struct sockaddr_in *)&address->socket;
    char port[16];
    const char *at = strchr(text, '@');
    size_t length = at ? (size_t)(at - text) : strlen(text);
    if (length == 0 || length >= sizeof port) die("no port: inet:%s", text);
    memcpy(port, text, length);
    port[length] = 0;
    unsigned long long value = number("--address", port);
    if (value > 65535) die("no port: %s", port);
    name->sin_family = AF_INET;
    name->sin_port = htons((uint16_t)value);
    if (inet_pton(AF_INET, at ? at + 1 : "127.0.0.1", &name->sin_addr) != 1) die("not an IPv4 address: inet:%s", text);
    address->length = sizeof *name;
    address->tcp = true;
}

void parse_address(const char *text, struct address *address) {
    memset(address, 0, sizeof *address);
    if (strncmp(text, "unix:", 5) == 0)
        parse_unix(text + 5, address);
    else if (strncmp(text, "inet:", 5) == 0)
        parse_inet(text + 5, address);
    else
        die("address must be unix:/path or inet:port@host: %s", text);
}

void put_u32(unsigned char *at, uint32_t value) {
    value = htonl(value);
    memcpy(at, &value, 4);
}

uint32_t get_u32(const unsigned char *at) {
    uint32_t value;
    memcpy(&value, at, 4);
    return ntohl(value);
}

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

double own_cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    if (limit.rlim_max < 65536) { /* root may raise the hard limit too; others keep what they have */
        struct rlimit more = {65536, 65536};
        if (setrlimit(RLIMIT_NOFILE, &more) == 0) return;
    }
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}
