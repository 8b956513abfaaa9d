/* The kernel's random numbers, which clones of one snapshot would have in common. */
#ifndef ENTROPY_H
#define ENTROPY_H

#include <stddef.h>

#define ENTROPY_MIN 32
#define ENTROPY_MAX 256

/* Stirs these bytes in, credits them, and has the kernel draw a new seed; 0, or an errno. */
int entropy_add(const unsigned char *bytes, size_t length);

#endif
