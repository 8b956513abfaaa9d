#include "clock.h"

#include <errno.h>
#include <time.h>

#define LEFT_ALONE_MS 100

bool clock_differs(long long now_ms, long long wanted_ms) {
    return now_ms - wanted_ms > LEFT_ALONE_MS || wanted_ms - now_ms > LEFT_ALONE_MS;
}

int clock_set(long long wanted_ms) {
    struct timespec now;
    struct timespec wanted = {.tv_sec = wanted_ms / 1000, .tv_nsec = wanted_ms % 1000 * 1000000};
    if (clock_gettime(CLOCK_REALTIME, &now) < 0)
        return errno;
    if (!clock_differs(now.tv_sec * 1000LL + now.tv_nsec / 1000000, wanted_ms))
        return 0;
    return clock_settime(CLOCK_REALTIME, &wanted) < 0 ? errno : 0;
}
