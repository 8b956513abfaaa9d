#include "mux.h"

static void put_number(unsigned char *out, uint32_t number) {
    out[0] = (unsigned char)(number >> 24);
    out[1] = (unsigned char)(number >> 16);
    out[2] = (unsigned char)(number >> 8);
    out[3] = (unsigned char)number;
}

uint32_t mux_number(const unsigned char *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 |
           (uint32_t)bytes[3];
}

void mux_header(unsigned char *out, unsigned char type, uint32_t stream, size_t length) {
    out[0] = type;
    put_number(out + 1, stream);
    out[5] = (unsigned char)(length >> 8);
    out[6] = (unsigned char)length;
}

bool mux_parse(const unsigned char *header, struct mux_frame *frame) {
    frame->type = header[0];
    frame->stream = mux_number(header + 1);
    frame->length = (size_t)header[5] << 8 | header[6];
    switch (frame->type) {
    case 'O':
    case 'C':
        return frame->length == 0;
    case 'D':
        return frame->length > 0 && frame->length <= MUX_PAYLOAD_MAX;
    case 'K':
        return frame->length == 4;
    case 'S':
        return frame->length == MUX_NONCE;
    default:
        return false;
    }
}
