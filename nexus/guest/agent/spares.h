/* Processes that wait for a connection to serve. To fork is much of what an answer costs, most of all
 * in a guest that was just loaded from a snapshot under an emulator, where nothing is cached. */
#ifndef SPARES_H
#define SPARES_H

#include <stdbool.h>
#include <sys/types.h>

/* How long nothing is to happen before spares are made: not while somebody waits for an answer. */
#define SPARES_QUIET_MS 1000

/* For poll: that time, or -1 while no spare is missing. */
int spares_timeout(void);

/* Makes those that are missing. Each calls `serve` with the connection that it is given. */
void spares_make(void (*serve)(int connection));

/* Hands a connection, which stays open here, to a spare; false when there is none. */
bool spares_give(int connection);

/* A child has ended: true if it was still a spare. */
bool spares_ended(pid_t pid);

#endif
