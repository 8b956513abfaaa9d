/* Starting the program of an exec, in a session of its own. */
#ifndef CHILD_H
#define CHILD_H

#include <stdbool.h>
#include <sys/types.h>

#include "request.h"

struct child {
    pid_t pid;
    int pidfd;
    /* Our ends: what it reads, what it writes. On a terminal `err` is -1 and the others are two
     * descriptors of the same terminal. */
    int in, out, err;
};

/* Starts it, or tells the host why not and returns false. */
bool child_start(const struct request *request, int connection, struct child *child);

#endif
