/* The framing of many streams over one port; nexus/qemu/mux.py is the other end. */
#ifndef MUX_H
#define MUX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MUX_HEADER 7
#define MUX_PAYLOAD_MAX (16 << 10)
#define MUX_WINDOW (64 << 10)
#define MUX_NONCE 16

struct mux_frame {
    unsigned char type;
    uint32_t stream;
    size_t length;
};

void mux_header(unsigned char *out, unsigned char type, uint32_t stream, size_t length);

/* The frame that begins with this header; false when that is none. */
bool mux_parse(const unsigned char *header, struct mux_frame *frame);

uint32_t mux_number(const unsigned char *bytes);

#endif
