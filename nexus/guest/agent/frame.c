#include "frame.h"

#include <errno.h>
#include <unistd.h>

void frame_header(unsigned char *out, unsigned char type, size_t length) {
    out[0] = type;
    out[1] = (unsigned char)(length >> 24);
    out[2] = (unsigned char)(length >> 16);
    out[3] = (unsigned char)(length >> 8);
    out[4] = (unsigned char)length;
}

bool frame_parse(const unsigned char *header, struct frame *frame) {
    uint32_t length = (uint32_t)header[1] << 24 | (uint32_t)header[2] << 16 |
                      (uint32_t)header[3] << 8 | (uint32_t)header[4];
    frame->type = header[0];
    frame->length = length;
    return length <= FRAME_MAX;
}

bool write_all(int fd, const void *bytes, size_t length) {
    const unsigned char *at = bytes;
    while (length > 0) {
        ssize_t put = write(fd, at, length);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return false;
        at += put;
        length -= (size_t)put;
    }
    return true;
}

static bool read_all(int fd, unsigned char *into, size_t length) {
    while (length > 0) {
        ssize_t got = read(fd, into, length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        into += got;
        length -= (size_t)got;
    }
    return true;
}

bool frame_send(int connection, unsigned char type, const void *payload, size_t length) {
    unsigned char header[FRAME_HEADER];
    frame_header(header, type, length);
    return write_all(connection, header, sizeof header) && write_all(connection, payload, length);
}

bool frame_receive(int connection, struct frame *frame) {
    static unsigned char payload[FRAME_MAX + 1];
    unsigned char header[FRAME_HEADER];
    if (!read_all(connection, header, sizeof header) || !frame_parse(header, frame))
        return false;
    if (!read_all(connection, payload, frame->length))
        return false;
    payload[frame->length] = 0;
    frame->payload = payload;
    return true;
}
