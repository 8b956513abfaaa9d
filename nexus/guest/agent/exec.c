#define _GNU_SOURCE
#include "exec.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "answer.h"
#include "buffer.h"
#include "child.h"
#include "frame.h"
#include "session.h"
#include "terminal.h"

#define CHUNK (32 << 10)
#define INPUT_MAX (256 << 10)

enum state { RUNNING, HOST_GONE, NONSENSE };

struct run {
    int connection;
    bool tty;
    struct child child;
    bool exited;
    bool input_ended;
    struct buffer from_host; /* frames */
    struct buffer to_host;   /* frames */
    struct buffer input;     /* for the program */
};

static void nonblocking(int fd) {
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void shut(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* -- what the host sends ---------------------------------------------------------------------- */

static void send_signal(const struct run *run, int number) {
    pid_t group = run->tty ? tcgetpgrp(run->child.out) : -1;
    if (!run->exited)
        kill(group > 1 ? -group : -run->child.pid, number);
}

static void end_input(struct run *run) {
    if (!run->tty) {
        run->input_ended = true;
    } else if (run->child.in >= 0) {
        unsigned char end = terminal_end_of_input(run->child.in);
        buffer_add(&run->input, &end, 1);
    }
}

/* False when the frame must wait for room; what cannot be a frame of an exec is NONSENSE. */
static bool take_frame(struct run *run, const struct frame *frame, enum state *state) {
    const unsigned char *bytes = frame->payload;
    if (frame->type == 'I') {
        if (run->child.in < 0 || run->input_ended)
            return true; /* the program does not listen any more */
        return buffer_add(&run->input, bytes, frame->length);
    }
    if (frame->type == 'E' && frame->length == 0) {
        if (buffer_room(&run->input) == 0)
            return false;
        end_input(run);
    } else if (frame->type == 'W' && frame->length == 4) {
        if (run->tty)
            terminal_resize(run->child.out, (unsigned short)(bytes[0] << 8 | bytes[1]),
                            (unsigned short)(bytes[2] << 8 | bytes[3]));
    } else if (frame->type == 'S' && frame->length == 1 && bytes[0] > 0 && bytes[0] < NSIG) {
        send_signal(run, bytes[0]);
    } else {
        *state = NONSENSE;
    }
    return true;
}

static enum state take_frames(struct run *run) {
    enum state state = RUNNING;
    struct frame frame;
    while (state == RUNNING && buffer_used(&run->from_host) >= FRAME_HEADER) {
        if (!frame_parse(buffer_head(&run->from_host), &frame))
            return NONSENSE;
        if (buffer_used(&run->from_host) < FRAME_HEADER + frame.length)
            break;
        frame.payload = buffer_head(&run->from_host) + FRAME_HEADER;
        if (!take_frame(run, &frame, &state))
            break;
        buffer_consume(&run->from_host, FRAME_HEADER + frame.length);
    }
    return state;
}

static enum state read_host(struct run *run) {
    ssize_t got = buffer_fill(&run->from_host, run->connection);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
        return HOST_GONE;
    return RUNNING;
}

/* -- what the program writes ------------------------------------------------------------------ */

static void read_program(struct run *run, int *fd, unsigned char type) {
    size_t room = buffer_room(&run->to_host);
    if (room <= FRAME_HEADER)
        return;
    size_t most = room - FRAME_HEADER < CHUNK ? room - FRAME_HEADER : CHUNK;
    unsigned char *frame = buffer_tail(&run->to_host);
    ssize_t got = read(*fd, frame + FRAME_HEADER, most);
    if (got > 0) {
        frame_header(frame, type, (size_t)got);
        buffer_extend(&run->to_host, FRAME_HEADER + (size_t)got);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        shut(fd); /* a terminal that all programs have left says EIO */
    }
}

static void write_program(struct run *run) {
    if (run->child.in >= 0 && buffer_used(&run->input) > 0)
        if (buffer_drain(&run->input, run->child.in) < 0 && errno != EAGAIN && errno != EINTR)
            shut(&run->child.in);
    if (run->child.in < 0)
        buffer_consume(&run->input, buffer_used(&run->input));
    else if (run->input_ended && buffer_used(&run->input) == 0)
        shut(&run->child.in);
}

static bool readable(int fd) {
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    return fd >= 0 && poll(&ready, 1, 0) > 0 && ready.revents & POLLIN;
}

/* -- the whole -------------------------------------------------------------------------------- */

/* Its output is complete when it has ended and nothing more lies in its pipes. What it left running
 * in the background may hold them open; nobody waits for that. */
static bool is_complete(const struct run *run) {
    return run->exited && !readable(run->child.out) && !readable(run->child.err);
}

/* Sends what is left, waiting for the host; false when it has gone. */
static bool send_rest(struct run *run) {
    fcntl(run->connection, F_SETFL, fcntl(run->connection, F_GETFL) & ~O_NONBLOCK);
    return write_all(run->connection, buffer_head(&run->to_host), buffer_used(&run->to_host));
}

static void send_exit(struct run *run) {
    int status = 0;
    waitpid(run->child.pid, &status, 0);
    unsigned char code = (unsigned char)(WIFEXITED(status) ? WEXITSTATUS(status)
                                                           : 128 + WTERMSIG(status));
    if (send_rest(run))
        frame_send(run->connection, 'C', &code, 1);
}

static enum state step(struct run *run) {
    bool room = buffer_room(&run->to_host) > FRAME_HEADER;
    enum { HOST, IN, OUT, ERR, END, COUNT };
    struct pollfd ready[COUNT] = {
        [HOST] = {.fd = run->connection, .events = POLLRDHUP},
        [IN] = {.fd = buffer_used(&run->input) > 0 ? run->child.in : -1, .events = POLLOUT},
        [OUT] = {.fd = room ? run->child.out : -1, .events = POLLIN},
        [ERR] = {.fd = room ? run->child.err : -1, .events = POLLIN},
        [END] = {.fd = run->exited ? -1 : run->child.pidfd, .events = POLLIN},
    };
    if (buffer_room(&run->from_host) > 0)
        ready[HOST].events |= POLLIN;
    if (buffer_used(&run->to_host) > 0)
        ready[HOST].events |= POLLOUT;
    if (poll(ready, COUNT, -1) < 0)
        return RUNNING;
    if (ready[HOST].revents & (POLLRDHUP | POLLHUP | POLLERR))
        return HOST_GONE;
    enum state state = ready[HOST].revents & POLLIN ? read_host(run) : RUNNING;
    if (ready[HOST].revents & POLLOUT && buffer_drain(&run->to_host, run->connection) < 0 &&
        errno != EAGAIN)
        state = HOST_GONE;
    if (ready[OUT].revents)
        read_program(run, &run->child.out, 'O');
    if (ready[ERR].revents)
        read_program(run, &run->child.err, 'T');
    if (ready[END].revents)
        run->exited = true;
    if (state == RUNNING)
        state = take_frames(run);
    write_program(run);
    return state;
}

void exec_run(const struct request *request, int connection) {
    if (request->args[0] == NULL) {
        fail(connection, "EINVAL", "exec needs arg");
        return;
    }
    static struct run run;
    run = (struct run){.connection = connection, .tty = request->tty};
    if (!child_start(request, connection, &run.child))
        return;
    buffer_make(&run.from_host, FRAME_HEADER + FRAME_MAX);
    buffer_make(&run.to_host, 2 * (FRAME_HEADER + CHUNK));
    buffer_make(&run.input, INPUT_MAX);
    nonblocking(connection);
    nonblocking(run.child.in);
    nonblocking(run.child.out);
    if (!run.tty)
        nonblocking(run.child.err);
    enum state state = RUNNING;
    while (state == RUNNING && !is_complete(&run))
        state = step(&run);
    if (state == RUNNING) {
        send_exit(&run);
        return;
    }
    /* Its pipes stay open meanwhile: a word on its way out must not kill it (SIGPIPE). */
    session_end(run.child.pid, run.child.pidfd);
    if (state == NONSENSE && send_rest(&run))
        fail(connection, "EPROTO", "an exec takes the frames I, E, W and S");
}
