#include "buffer.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void buffer_make(struct buffer *buffer, size_t size) {
    *buffer = (struct buffer){.data = malloc(size), .size = size};
    if (buffer->data == NULL)
        _exit(1);
}

void buffer_free(struct buffer *buffer) {
    free(buffer->data);
    *buffer = (struct buffer){0};
}

size_t buffer_used(const struct buffer *buffer) {
    return buffer->end - buffer->start;
}

size_t buffer_room(const struct buffer *buffer) {
    return buffer->size - buffer_used(buffer);
}

unsigned char *buffer_head(struct buffer *buffer) {
    return buffer->data + buffer->start;
}

unsigned char *buffer_tail(struct buffer *buffer) {
    if (buffer->start > 0) {
        memmove(buffer->data, buffer_head(buffer), buffer_used(buffer));
        buffer->end -= buffer->start;
        buffer->start = 0;
    }
    return buffer->data + buffer->end;
}

void buffer_consume(struct buffer *buffer, size_t length) {
    buffer->start += length;
    if (buffer->start == buffer->end)
        buffer->start = buffer->end = 0;
}

void buffer_extend(struct buffer *buffer, size_t length) {
    buffer->end += length;
}

bool buffer_add(struct buffer *buffer, const void *bytes, size_t length) {
    if (length > buffer_room(buffer))
        return false;
    memcpy(buffer_tail(buffer), bytes, length);
    buffer_extend(buffer, length);
    return true;
}

ssize_t buffer_fill(struct buffer *buffer, int fd) {
    unsigned char *tail = buffer_tail(buffer);
    ssize_t got = read(fd, tail, buffer_room(buffer));
    if (got > 0)
        buffer_extend(buffer, (size_t)got);
    return got;
}

ssize_t buffer_drain(struct buffer *buffer, int fd) {
    ssize_t put = write(fd, buffer_head(buffer), buffer_used(buffer));
    if (put > 0)
        buffer_consume(buffer, (size_t)put);
    return put;
}
