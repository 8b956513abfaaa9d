/* The frames of one connection: a type, a length of four bytes (the high one first), a payload.
 * docs/guest-agent.md says which type means what. */
#ifndef FRAME_H
#define FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_HEADER 5
#define FRAME_MAX 65536

struct frame {
    unsigned char type;
    size_t length;
    unsigned char *payload;
};

void frame_header(unsigned char *out, unsigned char type, size_t length);

/* The type and length in a header; false when the length is out of bounds. */
bool frame_parse(const unsigned char *header, struct frame *frame);

/* Waits until the whole frame is sent; false when the host has gone. */
bool frame_send(int connection, unsigned char type, const void *payload, size_t length);

/* Waits for a frame; its payload stays until the next call and is followed by a zero byte. False
 * when the host has gone, sends no frame, or takes longer than the socket's time-out. */
bool frame_receive(int connection, struct frame *frame);

/* Writes all of it, waiting where it must; false on an error, which errno names. */
bool write_all(int fd, const void *bytes, size_t length);

#endif
