/* A request to firecracker's API in the lab: `api SOCKET METHOD PATH BODY`, tried for ten seconds until
 * somebody listens. Prints the first line of the answer. */
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int count, char **arguments) {
    char answer[4096] = "";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (count != 5)
        return 2;
    strncpy(address.sun_path, arguments[1], sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    for (int tries = 0; connect(fd, (struct sockaddr *)&address, sizeof address) < 0; tries++) {
        if (tries == 100)
            return 1;
        poll(NULL, 0, 100);
    }
    dprintf(fd, "%s %s HTTP/1.1\r\nContent-Length: %zu\r\n\r\n%s", arguments[2], arguments[3],
            strlen(arguments[4]), arguments[4]);
    if (read(fd, answer, sizeof answer - 1) <= 0)
        return 1;
    printf("%s %s: %s\n", arguments[2], arguments[3], strtok(answer, "\r\n"));
    return 0;
}
