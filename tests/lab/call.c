/* A host program in the lab: calls the agent of a guest through a vsock's unix socket.
 *
 *   call SOCKET SECONDS FIELD...
 *
 * Tries for so many seconds until somebody answers, sends the fields as a request, and prints what
 * comes back, one frame a line: its type, its payload. Ends after a last frame (C, X, or an R that is
 * the whole answer to a request other than exec). */
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static void exactly(int fd, unsigned char *into, size_t length) {
    while (length > 0) {
        ssize_t got = read(fd, into, length);
        if (got <= 0) {
            printf("call: the connection ended\n");
            exit(1);
        }
        into += got;
        length -= (size_t)got;
    }
}

/* A connection that was answered OK, or -1. A guest that has no driver yet answers nothing. */
static int try_connect(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = 1};
    char line[32] = "";
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
        write(fd, "CONNECT 1024\n", 13) == 13) {
        size_t length = 0;
        while (length < sizeof line - 1 && read(fd, line + length, 1) == 1)
            if (line[length++] == '\n')
                break;
        if (strncmp(line, "OK ", 3) == 0)
            return fd;
    }
    close(fd);
    return -1;
}

static void send_request(int fd, int count, char **fields) {
    unsigned char frame[4096] = {'Q'};
    size_t length = 0;
    for (int at = 0; at < count; at++) {
        size_t size = strlen(fields[at]) + 1;
        memcpy(frame + 5 + length, fields[at], size);
        length += size;
    }
    frame[3] = (unsigned char)(length >> 8);
    frame[4] = (unsigned char)length;
    if (write(fd, frame, 5 + length) < 0)
        exit(1);
}

static void print(unsigned char type, const unsigned char *payload, size_t length) {
    printf("%c ", type);
    for (size_t at = 0; at < length; at++)
        if (type == 'C')
            printf("%d", payload[at]);
        else
            putchar(payload[at] < ' ' ? ' ' : payload[at]);
    printf("\n");
}

int main(int count, char **arguments) {
    if (count < 4)
        return 2;
    int fd = -1;
    time_t last = time(NULL) + atoi(arguments[2]);
    while ((fd = try_connect(arguments[1])) < 0 && time(NULL) < last)
        poll(NULL, 0, 100);
    if (fd < 0) {
        printf("call: nobody answers\n");
        return 1;
    }
    struct timeval limit = {.tv_sec = atoi(arguments[2])};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    send_request(fd, count - 3, arguments + 3);
    for (;;) {
        unsigned char header[5], payload[65536];
        exactly(fd, header, sizeof header);
        size_t length = (size_t)header[2] << 16 | (size_t)header[3] << 8 | header[4];
        exactly(fd, payload, length < sizeof payload ? length : sizeof payload);
        print(header[0], payload, length);
        if (header[0] != 'O' && header[0] != 'T')
            return 0;
    }
}
