/* What the load generator and the raw loop have in common. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

/* Protocol bits of the negotiation, for one command letter: "never send it" and "send it, expect no reply". */
uint32_t never_bit(char letter);
uint32_t no_reply_bit(char letter);

#define OFFERED_ACTIONS 0x1ffu
#define OFFERED_PROTOCOL 0x1fffffu
#define LEADING_SPACE_BIT 0x100000u
#define CHUNK 65535u

struct address {
    struct sockaddr_storage socket;
    socklen_t length;
    bool tcp;
    char path[108]; /* empty over TCP */
};

/* Reads unix:/path or inet:port@host (host in figures); ends the program when the text is neither. */
void parse_address(const char *text, struct address *address);

void put_u32(unsigned char *at, uint32_t value);
uint32_t get_u32(const unsigned char *at);
uint64_t now_ns(void);
double own_cpu_seconds(void);
void raise_file_limit(void);
void *allocate(size_t size);
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));
unsigned long long number(const char *option, const char *text);

#endif
