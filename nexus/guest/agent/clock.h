/* The wall clock, which stood still while the guest was a snapshot. */
#ifndef CLOCK_H
#define CLOCK_H

#include <stdbool.h>

/* Whether a clock that says `now_ms` is to be set when it is `wanted_ms`: a small difference may come
 * from the way here, and clocks that are disciplined by NTP should not be disturbed for it. */
bool clock_differs(long long now_ms, long long wanted_ms);

/* Sets CLOCK_REALTIME to so many milliseconds since 1970 where it differs; 0, or an errno. */
int clock_set(long long wanted_ms);

#endif
