#define _GNU_SOURCE
#include "entropy.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/random.h>

int entropy_add(const unsigned char *bytes, size_t length) {
    struct {
        struct rand_pool_info head; /* ends in a flexible array */
        uint32_t data[ENTROPY_MAX / sizeof(uint32_t)];
    } pool = {.head = {.entropy_count = (int)length * 8, .buf_size = (int)length}};
    int device = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    if (device < 0)
        return errno;
    memcpy(pool.data, bytes, length);
    int error = ioctl(device, RNDADDENTROPY, &pool) < 0 ? errno : 0;
    /* ENODATA: the kernel has had no seed yet, and now it has the first. */
    if (error == 0 && ioctl(device, RNDRESEEDCRNG) < 0 && errno != ENODATA)
        error = errno;
    close(device);
    explicit_bzero(&pool, sizeof pool);
    return error;
}
