/* The agent in a guest: serves the host's exec, cp, health and identify (docs/guest-agent.md).
 *
 *   nexus-guest-agent               finds its channel, returns when it can be called, and serves on
 *                                   in the background
 *   nexus-guest-agent --listen FD   serves a listening socket that it was given
 *   nexus-guest-agent --port FD     serves a port that it was given
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "listener.h"
#include "memory.h"
#include "port.h"
#include "terminal.h"

#define PORT_TRIES 20
#define PORT_POLL_MS 100

static void into_background(void) {
    pid_t pid = fork();
    if (pid != 0)
        _exit(pid < 0);
    setsid();
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    if (chdir("/") < 0)
        _exit(1);
}

/* The driver may make the port a moment after us. A port that was lost (the host has let go of it)
 * may come back as well. */
static _Noreturn void serve_ports(int port) {
    for (int tries = 0; tries < PORT_TRIES; tries++) {
        if (port >= 0) {
            port_serve(port);
            close(port);
        }
        poll(NULL, 0, PORT_POLL_MS);
        port = port_open();
    }
    _exit(0);
}

/* Two processes, one a channel: each knows how to wait for its own. */
static int serve(void) {
    memory_rank(MEMORY_LAST);
    terminal_prepare();
    int listener = listener_open();
    int port = port_open();
    if (fork() == 0) {
        into_background();
        close(listener);
        serve_ports(port);
    }
    if (listener < 0)
        return 0;
    close(port);
    into_background();
    listener_serve(listener);
}

int main(int count, char **arguments) {
    signal(SIGPIPE, SIG_IGN);
    if (count == 1)
        return serve();
    int fd = count == 3 ? atoi(arguments[2]) : -1;
    if (fd < 3 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
        fprintf(stderr, "usage: %s [--listen FD | --port FD]\n", arguments[0]);
        return 2;
    }
    if (strcmp(arguments[1], "--listen") == 0)
        listener_serve(fd);
    if (strcmp(arguments[1], "--port") == 0) {
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        port_serve(fd);
        return 0;
    }
    fprintf(stderr, "%s: unknown option %s\n", arguments[0], arguments[1]);
    return 2;
}
