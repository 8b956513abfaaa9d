#include "session.h"

#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GRACE_MS 2000
#define ROUNDS 20

/* Whether /proc says that a process that still lives belongs to the session. */
static int belongs(pid_t pid, pid_t session) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    /* The name in brackets may hold anything, brackets as well. */
    const char *after = strrchr(text, ')');
    char state;
    int parent, group, found;
    if (after == NULL || sscanf(after + 1, " %c %d %d %d", &state, &parent, &group, &found) != 4)
        return 0;
    return found == session && state != 'Z';
}

/* Sends a signal to all of the session; how many got it. */
static int signal_all(pid_t session, int number) {
    DIR *proc = opendir("/proc");
    if (proc == NULL)
        return kill(-session, number) == 0;
    int count = 0;
    const struct dirent *entry;
    while ((entry = readdir(proc)) != NULL) {
        pid_t pid = (pid_t)atoi(entry->d_name);
        if (pid > 1 && belongs(pid, session))
            count += kill(pid, number) == 0;
    }
    closedir(proc);
    return count;
}

void session_end(pid_t leader, int pidfd) {
    signal_all(leader, SIGHUP);
    signal_all(leader, SIGCONT);
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    poll(&ended, 1, GRACE_MS);
    for (int round = 0; round < ROUNDS && signal_all(leader, SIGKILL) > 0; round++)
        poll(&ended, 1, 0); /* those that forked meanwhile are found in the next round */
}
