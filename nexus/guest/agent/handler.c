#define _GNU_SOURCE
#include "handler.h"

#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "answer.h"
#include "exec.h"
#include "files.h"
#include "frame.h"
#include "health.h"
#include "identity.h"
#include "request.h"

#define REQUEST_S 10
#define LINGER_S 10

static void set_timeout(int connection, int seconds) {
    struct timeval limit = {.tv_sec = seconds};
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

static void work(const struct request *request, int connection) {
    static const struct {
        const char *op;
        void (*run)(const struct request *request, int connection);
    } files[] = {
        {"put", file_put},   {"get", file_get},     {"stat", file_stat},
        {"list", file_list}, {"mkdir", file_mkdir},
    };
    if (strcmp(request->op, "exec") == 0) {
        exec_run(request, connection);
        return;
    }
    if (strcmp(request->op, "health") == 0) {
        health_report(connection);
        return;
    }
    if (strcmp(request->op, "identify") == 0) {
        identity_take(request, connection);
        return;
    }
    for (size_t at = 0; at < sizeof files / sizeof *files; at++)
        if (strcmp(request->op, files[at].op) == 0) {
            if (request->path == NULL)
                fail(connection, "EINVAL", "%s needs path", request->op);
            else
                files[at].run(request, connection);
            return;
        }
    fail(connection, "unknown-op", "this guest's agent knows no %s", request->op);
}

/* The last frame must reach a host that is still sending: a socket that is closed with unread bytes
 * in it may take what was written along. The host closes when it has seen the last frame. */
static void linger(int connection) {
    char unread[4096];
    set_timeout(connection, LINGER_S);
    while (recv(connection, unread, sizeof unread, 0) > 0)
        ;
}

_Noreturn void handler_run(int connection) {
    static char fields[FRAME_MAX + 1]; /* the frame's payload gives way to the next frame's */
    struct frame frame;
    struct request request;
    set_timeout(connection, REQUEST_S);
    if (!frame_receive(connection, &frame))
        _exit(1);
    set_timeout(connection, 0);
    memcpy(fields, frame.payload, frame.length);
    const char *problem = frame.type == 'Q'
                              ? request_parse(fields, frame.length, &request)
                              : "the first frame is a request";
    if (problem != NULL)
        fail(connection, "EINVAL", "%s", problem);
    else
        work(&request, connection);
    linger(connection);
    _exit(0);
}
