#define _GNU_SOURCE
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "answer.h"
#include "frame.h"

#define CHUNK (32 << 10)

/* -- put -------------------------------------------------------------------------------------- */

/* Takes the content into an open file; false when the host went away, an error for it otherwise. */
static bool take_content(int connection, int file, unsigned long long *size, int *error) {
    struct frame frame;
    for (;;) {
        if (!frame_receive(connection, &frame))
            return false;
        if (frame.type == 'E')
            return true;
        if (frame.type != 'I')
            *error = EPROTO;
        else if (!write_all(file, frame.payload, frame.length))
            *error = errno;
        if (*error != 0)
            return true;
        *size += frame.length;
    }
}

void file_put(const struct request *request, int connection) {
    char fresh[PATH_MAX];
    const char *name = strrchr(request->path, '/') + 1;
    int folder = (int)(name - request->path);
    int length = snprintf(fresh, sizeof fresh, "%.*s.nexus-put-XXXXXX", folder, request->path);
    if (*name == 0 || length >= (int)sizeof fresh || strlen(name) > NAME_MAX) {
        fail_errno(connection, *name == 0 ? EISDIR : ENAMETOOLONG, request->path);
        return;
    }
    int file = mkostemp(fresh, O_CLOEXEC);
    if (file < 0) {
        fail_errno(connection, errno, request->path);
        return;
    }
    unsigned long long size = 0;
    int error = 0;
    bool whole = take_content(connection, file, &size, &error);
    if (whole && error == 0 && fchmod(file, request->mode) < 0)
        error = errno;
    if (close(file) < 0 && error == 0)
        error = errno;
    if (whole && error == 0 && rename(fresh, request->path) < 0)
        error = errno;
    if (!whole || error != 0)
        unlink(fresh);
    if (error != 0) {
        fail_errno(connection, error, request->path);
    } else if (whole) {
        struct answer answer = {.length = 0};
        answer_add(&answer, "bytes", "%llu", size);
        answer_send(&answer, connection);
    }
}

/* -- get -------------------------------------------------------------------------------------- */

static bool send_content(int connection, int file) {
    static unsigned char chunk[CHUNK];
    ssize_t got;
    while ((got = read(file, chunk, sizeof chunk)) > 0)
        if (!frame_send(connection, 'O', chunk, (size_t)got))
            return true;
    return got == 0 && frame_send(connection, 'E', "", 0);
}

void file_get(const struct request *request, int connection) {
    int file = open(request->path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    struct stat found;
    if (file < 0 || fstat(file, &found) < 0) {
        fail_errno(connection, errno, request->path);
        return;
    }
    if (!S_ISREG(found.st_mode)) {
        if (S_ISDIR(found.st_mode))
            fail_errno(connection, EISDIR, request->path);
        else
            fail(connection, "not-a-file", "%s: not a regular file", request->path);
        return;
    }
    struct answer answer = {.length = 0};
    answer_add(&answer, "kind", "file");
    answer_add(&answer, "mode", "%o", found.st_mode & 07777);
    answer_add(&answer, "size", "%llu", (unsigned long long)found.st_size);
    if (answer_send(&answer, connection) && !send_content(connection, file))
        fail_errno(connection, errno, request->path);
}

/* -- stat, list, mkdir ------------------------------------------------------------------------ */

static const char *kind(mode_t mode) {
    if (S_ISREG(mode))
        return "file";
    if (S_ISDIR(mode))
        return "dir";
    return S_ISLNK(mode) ? "link" : "other";
}

void file_stat(const struct request *request, int connection) {
    struct stat found;
    if (lstat(request->path, &found) < 0) {
        fail_errno(connection, errno, request->path);
        return;
    }
    struct answer answer = {.length = 0};
    answer_add(&answer, "kind", "%s", kind(found.st_mode));
    answer_add(&answer, "mode", "%o", found.st_mode & 07777);
    answer_add(&answer, "size", "%llu", (unsigned long long)found.st_size);
    char target[PATH_MAX];
    ssize_t length = readlink(request->path, target, sizeof target);
    if (length >= 0)
        answer_add(&answer, "target", "%.*s", (int)length, target);
    answer_send(&answer, connection);
}

static bool add_entry(struct answer *answer, const struct stat *found, const char *name) {
    return answer_add(answer, "entry", "%c,%o,%llu,%s", kind(found->st_mode)[0],
                      found->st_mode & 07777, (unsigned long long)found->st_size, name);
}

void file_list(const struct request *request, int connection) {
    DIR *folder = opendir(request->path);
    if (folder == NULL) {
        fail_errno(connection, errno, request->path);
        return;
    }
    static struct answer answer;
    const struct dirent *entry;
    struct stat found;
    while ((entry = readdir(folder)) != NULL) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            continue;
        if (fstatat(dirfd(folder), name, &found, AT_SYMLINK_NOFOLLOW) < 0)
            continue; /* gone meanwhile */
        if (add_entry(&answer, &found, name))
            continue;
        if (!answer_send(&answer, connection))
            return;
        add_entry(&answer, &found, name);
    }
    if (answer.length == 0 || answer_send(&answer, connection))
        frame_send(connection, 'E', "", 0);
}

void file_mkdir(const struct request *request, int connection) {
    if (mkdir(request->path, 0700) < 0 || chmod(request->path, request->mode) < 0) {
        fail_errno(connection, errno, request->path);
        return;
    }
    frame_send(connection, 'R', "", 0);
}
