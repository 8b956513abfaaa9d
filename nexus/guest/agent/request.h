/* What the host asks for: the fields of the first frame, checked. */
#ifndef REQUEST_H
#define REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct request {
    const char *op;
    const char *path;
    mode_t mode;
    /* exec: both lists end with NULL */
    char **args;
    char **env;
    const char *cwd;
    const char *user;
    bool tty;
    unsigned short rows, cols;
    /* identify: what was not given is NULL; both lists end with NULL */
    const char *hostname;
    const char *machine_id;
    const char *entropy;
    const char *time_ms;
    char **nics;
    char **dns;
};

/* Reads a payload that is followed by a zero byte; the request points into it. NULL, or what is
 * wrong with it. Fields of other names are left alone: a newer host may send them. */
const char *request_parse(char *payload, size_t length, struct request *request);

#endif
