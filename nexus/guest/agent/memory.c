#include "memory.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "frame.h"

void memory_rank(const char *rank) {
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    write_all(fd, rank, strlen(rank));
    close(fd);
}
