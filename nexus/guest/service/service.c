// Becomes the service of a guest that was made of a container's image: user, folder, environment and
// program come from a file, so that no shell has to understand them.
//
//   nexus-service FILE
//
// FILE holds strings that end in NUL: uid, gid, other gids with commas in between, working folder, the
// number of arguments, the arguments, and NAME=VALUE for each variable.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_BYTES = 1 << 20, MOST_GROUPS = 64, NOT_RUN = 126, NOT_FOUND = 127 };

static char text[MOST_BYTES + 1];
static size_t length, at;

static void fail(int status, const char *what) {
    fprintf(stderr, "nexus-service: %s: %s\n", what, strerror(errno));
    exit(status);
}

static void load(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        fail(NOT_RUN, path);
    for (;;) {
        ssize_t got = read(file, text + length, MOST_BYTES - length);
        if (got < 0)
            fail(NOT_RUN, path);
        if (got == 0)
            break;
        length += (size_t)got;
    }
    close(file);
}

static char *next(void) {
    if (at >= length) {
        errno = EINVAL;
        fail(NOT_RUN, "the service's description ends early");
    }
    char *found = text + at;
    at += strlen(found) + 1;
    return found;
}

static unsigned number(const char *digits) {
    return (unsigned)strtoul(digits, NULL, 10);
}

static size_t read_groups(char *list, gid_t *groups) {
    size_t count = 0;
    char *rest = NULL;
    for (char *one = strtok_r(list, ",", &rest); one && count < MOST_GROUPS;
         one = strtok_r(NULL, ",", &rest))
        groups[count++] = number(one);
    return count;
}

static void make_folder(char *path) {
    for (char *end = path + 1; (end = strchr(end, '/')); end++) {
        *end = 0;
        mkdir(path, 0755);
        *end = '/';
    }
    mkdir(path, 0755);
}

int main(int count, char **names) {
    if (count != 2) {
        fputs("usage: nexus-service FILE\n", stderr);
        return NOT_RUN;
    }
    load(names[1]);
    uid_t uid = number(next());
    gid_t gid = number(next());
    gid_t groups[MOST_GROUPS];
    size_t grouped = read_groups(next(), groups);
    char *folder = next();
    unsigned arguments = number(next());
    char **program = calloc(arguments + 1, sizeof *program);
    if (!program || !arguments) {
        errno = EINVAL;
        fail(NOT_RUN, "no program");
    }
    for (unsigned number_of = 0; number_of < arguments; number_of++)
        program[number_of] = next();
    clearenv();
    while (at < length)
        putenv(next());

    make_folder(folder);
    if (chdir(folder) < 0)
        fail(NOT_RUN, folder);
    if (setgroups(grouped, groups) < 0 || setgid(gid) < 0 || setuid(uid) < 0)
        fail(NOT_RUN, "cannot become the service's user");
    // What busybox's init ignores would stay ignored.
    for (int sign = 1; sign < NSIG; sign++)
        signal(sign, SIG_DFL);
    execvp(program[0], program);
    fail(errno == ENOENT ? NOT_FOUND : NOT_RUN, program[0]);
}
