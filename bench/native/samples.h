/* Latencies, kept one by one up to a bound and sorted at the end. */
#ifndef BENCH_SAMPLES_H
#define BENCH_SAMPLES_H

#include <stddef.h>
#include <stdint.h>

#define SAMPLES_ROOM (4u << 20)

struct samples {
    uint32_t *tenths; /* of a microsecond */
    size_t count;
};

void add_sample(struct samples *samples, uint64_t nanoseconds);
void sort_samples(struct samples *samples);

/* In microseconds, of sorted samples; 0 when there are none. */
double percentile(const struct samples *samples, double percent);

#endif
