#define _GNU_SOURCE
#include "handlers.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "handler.h"
#include "spares.h"

#define CONNECTION 3

static int ended = -1;
static int running;

int handlers_init(void) {
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, NULL);
    ended = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
    return ended;
}

void handlers_reap(void) {
    struct signalfd_siginfo news;
    pid_t pid;
    while (read(ended, &news, sizeof news) > 0)
        ;
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
        if (!spares_ended(pid))
            running--;
}

/* Descriptors of other connections would keep them open: only this one is taken along. */
static _Noreturn void serve(int connection) {
    if (connection != CONNECTION)
        dup3(connection, CONNECTION, O_CLOEXEC);
    close_range(CONNECTION + 1, ~0U, 0);
    handler_run(CONNECTION);
}

bool handlers_start(int connection) {
    if (running >= HANDLERS_MAX)
        return false;
    if (!spares_give(connection)) {
        pid_t pid = fork();
        if (pid == 0)
            serve(connection);
        if (pid < 0)
            return false;
    }
    running++;
    return true;
}

int handlers_timeout(void) {
    return spares_timeout();
}

void handlers_quiet(void) {
    spares_make(serve);
}
