/* Serving a port: each stream that the host opens gets a handler at the other end of a socket pair,
 * and this process carries bytes between the port and these. Nothing here waits for one stream. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "buffer.h"
#include "handlers.h"
#include "mux.h"
#include "port.h"

#define STREAMS HANDLERS_MAX
#define TO_PORT_MAX (256 << 10)
#define FROM_PORT_MAX (64 << 10)
#define ACKNOWLEDGE (MUX_WINDOW / 4)
/* Room for answers that a frame of the host may cause: it is read only where there is this much. */
#define RESERVE 64

struct stream {
    uint32_t number; /* 0: this place is free */
    int fd;
    uint32_t credit;    /* bytes that the host still takes */
    uint32_t delivered; /* bytes given to the handler that the host was not told of */
    struct buffer to_handler;
};

static struct stream streams[STREAMS];
static struct buffer from_port, to_port;
static bool synced;

static void say(unsigned char type, uint32_t stream, const void *payload, size_t length) {
    unsigned char header[MUX_HEADER];
    mux_header(header, type, stream, length);
    buffer_add(&to_port, header, sizeof header);
    buffer_add(&to_port, payload, length);
}

/* -- streams ---------------------------------------------------------------------------------- */

static struct stream *find(uint32_t number) {
    for (struct stream *at = streams; at < streams + STREAMS; at++)
        if (at->number == number)
            return at;
    return NULL;
}

/* A handler sees the end of its connection, and ends what it has started. */
static void drop(struct stream *stream) {
    close(stream->fd);
    buffer_free(&stream->to_handler);
    stream->number = 0;
}

static void drop_all(void) {
    for (struct stream *at = streams; at < streams + STREAMS; at++)
        if (at->number != 0)
            drop(at);
}

static void end(struct stream *stream) {
    say('C', stream->number, "", 0);
    drop(stream);
}

static void open_stream(uint32_t number) {
    struct stream *stream = find(0);
    int pair[2];
    if (number == 0 || find(number) != NULL)
        return;
    if (stream == NULL ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        say('C', number, "", 0);
        return;
    }
    bool started = handlers_start(pair[1]);
    close(pair[1]);
    if (!started) {
        close(pair[0]);
        say('C', number, "", 0);
        return;
    }
    *stream = (struct stream){.number = number, .fd = pair[0], .credit = MUX_WINDOW};
    buffer_make(&stream->to_handler, MUX_WINDOW);
    say('A', number, "", 0);
}

static void deliver(struct stream *stream) {
    ssize_t put = send(stream->fd, buffer_head(&stream->to_handler),
                       buffer_used(&stream->to_handler), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (put < 0 && errno != EAGAIN && errno != EINTR) {
        buffer_consume(&stream->to_handler, buffer_used(&stream->to_handler)); /* it has ended */
        return;
    }
    if (put <= 0)
        return;
    buffer_consume(&stream->to_handler, (size_t)put);
    stream->delivered += (uint32_t)put;
    if (stream->delivered >= ACKNOWLEDGE) {
        uint32_t size = stream->delivered;
        unsigned char bytes[4] = {(unsigned char)(size >> 24), (unsigned char)(size >> 16),
                                  (unsigned char)(size >> 8), (unsigned char)size};
        say('K', stream->number, bytes, sizeof bytes);
        stream->delivered = 0;
    }
}

/* How much of what the handler says can be taken now. */
static size_t takes(const struct stream *stream) {
    size_t room = buffer_room(&to_port);
    size_t most = stream->credit < MUX_PAYLOAD_MAX ? stream->credit : MUX_PAYLOAD_MAX;
    return room > most + MUX_HEADER + RESERVE ? most : 0;
}

static void collect(struct stream *stream) {
    size_t most = takes(stream);
    if (most == 0)
        return;
    unsigned char *frame = buffer_tail(&to_port);
    ssize_t got = recv(stream->fd, frame + MUX_HEADER, most, MSG_DONTWAIT);
    if (got > 0) {
        mux_header(frame, 'D', stream->number, (size_t)got);
        buffer_extend(&to_port, MUX_HEADER + (size_t)got);
        stream->credit -= (uint32_t)got;
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        end(stream);
    }
}

/* -- the port --------------------------------------------------------------------------------- */

/* A new conversation: nothing of the one before is valid, what was not sent is of no use. */
static void sync_with(const unsigned char *nonce) {
    drop_all();
    buffer_consume(&to_port, buffer_used(&to_port));
    say('S', 0, nonce, MUX_NONCE);
    synced = true;
}

static void take_frame(const struct mux_frame *frame, const unsigned char *payload) {
    if (frame->type == 'S') {
        sync_with(payload);
        return;
    }
    if (!synced)
        return;
    if (frame->type == 'O') {
        open_stream(frame->stream);
        return;
    }
    struct stream *stream = frame->stream != 0 ? find(frame->stream) : NULL;
    if (stream == NULL)
        return; /* it was closed here while this was under way */
    if (frame->type == 'C') {
        drop(stream);
    } else if (frame->type == 'K') {
        uint64_t credit = (uint64_t)stream->credit + mux_number(payload);
        stream->credit = credit < MUX_WINDOW ? (uint32_t)credit : MUX_WINDOW;
    } else if (buffer_add(&stream->to_handler, payload, frame->length)) {
        deliver(stream);
    } else {
        end(stream); /* beyond its window */
    }
}

/* Zeros between frames are padding. What is no frame at all is skipped until a SYNC is found; the
 * host sees by its streams' end that it must begin anew. */
static void take_frames(void) {
    struct mux_frame frame;
    while (buffer_used(&from_port) > 0 && buffer_room(&to_port) >= RESERVE) {
        unsigned char *head = buffer_head(&from_port);
        size_t used = buffer_used(&from_port), zeros = 0;
        while (zeros < used && head[zeros] == 0)
            zeros++; /* all at once: 16 KiB of them begin the first conversation after a load */
        if (zeros > 0) {
            buffer_consume(&from_port, zeros);
            continue;
        }
        if (buffer_used(&from_port) < MUX_HEADER)
            return;
        if (!mux_parse(head, &frame)) {
            if (synced)
                drop_all();
            synced = false;
            buffer_consume(&from_port, 1);
            continue;
        }
        if (buffer_used(&from_port) < MUX_HEADER + frame.length)
            return;
        take_frame(&frame, head + MUX_HEADER);
        buffer_consume(&from_port, MUX_HEADER + frame.length);
    }
}

static bool failed(ssize_t done) {
    return done == 0 || (done < 0 && errno != EAGAIN && errno != EINTR);
}

void port_serve(int port) {
    enum { PORT, ENDED, FIRST };
    struct pollfd ready[FIRST + STREAMS] = {
        [PORT] = {.fd = port}, [ENDED] = {.fd = handlers_init(), .events = POLLIN}};
    buffer_make(&from_port, FROM_PORT_MAX);
    buffer_make(&to_port, TO_PORT_MAX);
    for (;;) {
        bool reads = buffer_room(&from_port) > 0 && buffer_room(&to_port) >= RESERVE;
        ready[PORT].events = (short)((reads ? POLLIN : 0) |
                                     (buffer_used(&to_port) > 0 ? POLLOUT : 0));
        for (int at = 0; at < STREAMS; at++) {
            const struct stream *stream = &streams[at];
            bool out = stream->number != 0 && buffer_used(&stream->to_handler) > 0;
            bool in = stream->number != 0 && takes(stream) > 0;
            ready[FIRST + at].fd = in || out ? stream->fd : -1;
            ready[FIRST + at].events = (short)((in ? POLLIN : 0) | (out ? POLLOUT : 0));
        }
        int happened = poll(ready, FIRST + STREAMS, handlers_timeout());
        if (happened == 0)
            handlers_quiet();
        if (happened <= 0)
            continue;
        if (ready[ENDED].revents)
            handlers_reap();
        for (int at = 0; at < STREAMS; at++) {
            short events = ready[FIRST + at].revents;
            if (events != 0 && buffer_used(&streams[at].to_handler) > 0)
                deliver(&streams[at]);
            if (events & ~POLLOUT)
                collect(&streams[at]);
        }
        if (ready[PORT].revents & POLLIN && failed(buffer_fill(&from_port, port)))
            return;
        if (ready[PORT].revents & (POLLHUP | POLLERR) && !(ready[PORT].revents & POLLIN))
            return;
        take_frames();
        if (buffer_used(&to_port) > 0)
            if (buffer_drain(&to_port, port) < 0 && errno != EAGAIN && errno != EINTR)
                return;
    }
}
