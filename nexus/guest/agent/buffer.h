/* A bounded run of bytes between two descriptors: filled at its end, drained from its start. */
#ifndef BUFFER_H
#define BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct buffer {
    unsigned char *data;
    size_t size, start, end;
};

/* Allocates room for so many bytes; the process ends if there is no memory. */
void buffer_make(struct buffer *buffer, size_t size);
void buffer_free(struct buffer *buffer);

size_t buffer_used(const struct buffer *buffer);
size_t buffer_room(const struct buffer *buffer);

/* The first byte, and where the next one goes. At `buffer_tail` all of the room is in one piece. */
unsigned char *buffer_head(struct buffer *buffer);
unsigned char *buffer_tail(struct buffer *buffer);

void buffer_consume(struct buffer *buffer, size_t length);
void buffer_extend(struct buffer *buffer, size_t length);

/* False, and nothing is added, when there is not enough room. */
bool buffer_add(struct buffer *buffer, const void *bytes, size_t length);

/* One read or write of what fits; answers as these do. */
ssize_t buffer_fill(struct buffer *buffer, int fd);
ssize_t buffer_drain(struct buffer *buffer, int fd);

#endif
