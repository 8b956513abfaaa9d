/* The processes that serve connections, one each, so that none can stop another. */
#ifndef HANDLERS_H
#define HANDLERS_H

#include <stdbool.h>

#define HANDLERS_MAX 64

/* A descriptor that becomes readable when a handler has ended: call `handlers_reap` then. */
int handlers_init(void);
void handlers_reap(void);

/* For poll: call `handlers_quiet` when nothing happened for so long. */
int handlers_timeout(void);
void handlers_quiet(void);

/* Starts a handler for a connection, which stays open here; false when there are too many. */
bool handlers_start(int connection);

#endif
