#include "samples.h"

#include <stdlib.h>

#include "common.h"

void add_sample(struct samples *samples, uint64_t nanoseconds) {
    if (!samples->tenths) samples->tenths = allocate(SAMPLES_ROOM * sizeof *samples->tenths);
    uint64_t tenths = nanoseconds / 100;
    if (samples->count < SAMPLES_ROOM) samples->tenths[samples->count++] = tenths > UINT32_MAX ? UINT32_MAX : (uint32_t)tenths;
}

static int compare(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

void sort_samples(struct samples *samples) {
    if (samples->count) qsort(samples->tenths, samples->count, sizeof *samples->tenths, compare);
}

double percentile(const struct samples *samples, double percent) {
    if (samples->count == 0) return 0;
    size_t rank = (size_t)((double)samples->count * percent / 100.0);
    return samples->tenths[rank < samples->count ? rank : samples->count - 1] / 10.0;
}
