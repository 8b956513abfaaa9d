#define _GNU_SOURCE
#include "listener.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "handlers.h"

#define AGENT_PORT 1024

int listener_open(void) {
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK, .svm_port = AGENT_PORT, .svm_cid = VMADDR_CID_ANY};
    int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0)
        return -1;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(listener, HANDLERS_MAX) < 0) {
        close(listener);
        return -1;
    }
    return listener;
}

static void take(int listener) {
    int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (connection < 0)
        return;
    handlers_start(connection);
    close(connection);
}

_Noreturn void listener_serve(int listener) {
    struct pollfd ready[] = {
        {.fd = listener, .events = POLLIN},
        {.fd = handlers_init(), .events = POLLIN},
    };
    fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK);
    for (;;) {
        int happened = poll(ready, 2, handlers_timeout());
        if (happened == 0)
            handlers_quiet();
        if (happened <= 0)
            continue;
        if (ready[1].revents)
            handlers_reap();
        if (ready[0].revents)
            take(listener);
    }
}
