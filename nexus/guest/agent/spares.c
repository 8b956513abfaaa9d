#define _GNU_SOURCE
#include "spares.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SPARES 2 /* a host that has loaded a snapshot asks two things at once: health, identify */
#define LINE 3

/* `line` is our end of the socket pair over which it is handed its connection. */
static struct spare {
    pid_t pid; /* 0: there is none */
    int line;
} spares[SPARES];

int spares_timeout(void) {
    for (int at = 0; at < SPARES; at++)
        if (spares[at].pid == 0)
            return SPARES_QUIET_MS;
    return -1;
}

union rights {
    struct cmsghdr head;
    char room[CMSG_SPACE(sizeof(int))];
};

/* The connection, or -1 when there will be none: whoever could give it has ended. */
static int take(int line) {
    char byte;
    union rights rights;
    struct iovec data = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = rights.room,
                             .msg_controllen = sizeof rights.room};
    int connection = -1;
    if (recvmsg(line, &message, MSG_CMSG_CLOEXEC) != 1)
        return -1;
    const struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head != NULL && head->cmsg_type == SCM_RIGHTS)
        memcpy(&connection, CMSG_DATA(head), sizeof connection);
    return connection;
}

/* Keeps nothing of its parent but its line: other descriptors would keep connections open. */
static _Noreturn void wait_for_connection(int line, void (*serve)(int connection)) {
    if (line != LINE)
        dup3(line, LINE, O_CLOEXEC);
    close_range(LINE + 1, ~0U, 0);
    int connection = take(LINE);
    if (connection >= 0)
        serve(connection);
    _exit(0);
}

void spares_make(void (*serve)(int connection)) {
    for (struct spare *spare = spares; spare < spares + SPARES; spare++) {
        int pair[2];
        if (spare->pid != 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
            continue;
        pid_t pid = fork();
        if (pid == 0)
            wait_for_connection(pair[1], serve);
        close(pair[1]);
        if (pid > 0)
            *spare = (struct spare){.pid = pid, .line = pair[0]};
        else
            close(pair[0]);
    }
}

static void forget(struct spare *spare) {
    close(spare->line);
    spare->pid = 0;
}

bool spares_give(int connection) {
    char byte = 0;
    union rights rights = {.head = {.cmsg_level = SOL_SOCKET,
                                    .cmsg_type = SCM_RIGHTS,
                                    .cmsg_len = CMSG_LEN(sizeof connection)}};
    struct iovec data = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = rights.room,
                             .msg_controllen = sizeof rights.room};
    memcpy(CMSG_DATA(&rights.head), &connection, sizeof connection);
    for (struct spare *spare = spares; spare < spares + SPARES; spare++)
        if (spare->pid != 0 &&
            sendmsg(spare->line, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == 1) {
            forget(spare); /* it is one of those that serve now */
            return true;
        }
    return false;
}

bool spares_ended(pid_t pid) {
    for (struct spare *spare = spares; spare < spares + SPARES; spare++)
        if (spare->pid == pid) {
            forget(spare);
            return true;
        }
    return false;
}
