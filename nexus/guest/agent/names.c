#define _GNU_SOURCE
#include "names.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frame.h"

#define HOST_MAX 64
#define FILE_MAX (64 << 10)
#define HOSTS "/etc/hosts"
#define IDENTITY "/run/nexus/identity" /* hostname=NAME ip=ADDRESS, in Debian guests */

bool names_is_host(const char *name) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    size_t length = strlen(name);
    return length > 0 && length <= HOST_MAX && strspn(name, allowed) == length && name[0] != '-' &&
           name[0] != '.';
}

bool names_is_machine_id(const char *id) {
    return strlen(id) == 32 && strspn(id, "0123456789abcdef") == 32;
}

/* -- files ------------------------------------------------------------------------------------ */

enum when { IF_THERE, ALWAYS };

/* Where nothing can be written nothing has to be: a file or folder that this guest does not have, a
 * root that is mounted read-only. */
static int unless_absent(int error) {
    return error == ENOENT || error == ENOTDIR || error == EROFS ? 0 : error;
}

/* Replaces a file's content in its place, so that one that is a link or mounted stays so, and no
 * reader finds it empty. */
static int write_file(const char *path, const char *text, size_t length, enum when when,
                      mode_t mode) {
    int flags = O_WRONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    int file = open(path, flags | (when == ALWAYS ? O_CREAT : 0), mode);
    if (file < 0)
        return unless_absent(errno);
    int error = write_all(file, text, length) && ftruncate(file, (off_t)length) == 0 ? 0 : errno;
    if (close(file) < 0 && error == 0)
        error = errno;
    return error;
}

static int write_line(const char *path, const char *line, enum when when, mode_t mode) {
    char text[256];
    int length = snprintf(text, sizeof text, "%s\n", line);
    return write_file(path, text, (size_t)length, when, mode);
}

/* The content of a file, followed by a zero byte; "" when there is none. NULL, and errno, when it
 * cannot be read or is too long to be one of those we know. */
static char *read_file(const char *path) {
    char *text = calloc(1, FILE_MAX + 1);
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    ssize_t got = 0;
    size_t length = 0;
    if (text == NULL)
        return NULL;
    if (file < 0) {
        if (unless_absent(errno) == 0)
            return text;
        free(text);
        return NULL;
    }
    while (length < FILE_MAX && (got = read(file, text + length, FILE_MAX - length)) > 0)
        length += (size_t)got;
    close(file);
    if (got >= 0 && length < FILE_MAX)
        return text;
    if (got >= 0)
        errno = EFBIG;
    free(text);
    return NULL;
}

/* -- /etc/hosts ------------------------------------------------------------------------------- */

static bool is_word(const char *word, size_t length, const char *name) {
    return strlen(name) == length && memcmp(word, name, length) == 0;
}

/* One line with the old name replaced where it stands alone; true when the new one is in it. The
 * first word is an address, and what follows a # is for people. */
static bool rename_in_line(FILE *out, const char *line, size_t length, const char *old,
                           const char *name) {
    bool found = false, first = true;
    size_t at = 0;
    while (at < length && line[at] != '#') {
        size_t space = strspn(line + at, " \t"), word;
        if (space > length - at)
            space = length - at;
        fwrite(line + at, 1, space, out);
        at += space;
        word = strcspn(line + at, " \t\n#");
        if (word > length - at)
            word = length - at;
        bool replace = !first && old[0] != 0 && is_word(line + at, word, old);
        if (replace)
            fputs(name, out);
        else
            fwrite(line + at, 1, word, out);
        found |= replace || (!first && is_word(line + at, word, name));
        first &= word == 0;
        at += word;
    }
    fwrite(line + at, 1, length - at, out);
    return found;
}

static void rename_in_hosts(FILE *out, const char *text, const char *old, const char *name) {
    bool found = false, ends = true;
    if (*text == 0)
        fputs("127.0.0.1 localhost\n", out);
    while (*text != 0) {
        size_t length = strcspn(text, "\n");
        found |= rename_in_line(out, text, length, old, name);
        ends = text[length] == '\n';
        if (ends)
            fputc('\n', out);
        text += length + ends;
    }
    if (!found)
        fprintf(out, "%s127.0.1.1 %s\n", ends ? "" : "\n", name);
}

static int set_hosts(const char *old, const char *name) {
    char *text = read_file(HOSTS), *fresh = NULL;
    size_t length;
    if (text == NULL)
        return errno;
    FILE *out = open_memstream(&fresh, &length);
    if (out == NULL)
        return ENOMEM;
    rename_in_hosts(out, text, strcmp(old, "localhost") == 0 ? "" : old, name);
    if (fclose(out) != 0)
        return ENOMEM;
    return strcmp(text, fresh) == 0 ? 0 : write_file(HOSTS, fresh, length, ALWAYS, 0644);
}

/* -- what our images keep for themselves ------------------------------------------------------ */

static int set_identity(const char *name, const char *address) {
    char *text = read_file(IDENTITY), old_name[HOST_MAX + 1] = "", old_address[64] = "";
    char line[256];
    if (text == NULL)
        return errno;
    if (sscanf(text, "hostname=%64s ip=%63s", old_name, old_address) < 1)
        return 0; /* not there, or not ours */
    snprintf(line, sizeof line, "hostname=%s ip=%s", name != NULL ? name : old_name,
             address != NULL ? address : old_address);
    return write_line(IDENTITY, line, IF_THERE, 0644);
}

int names_set_address(const char *address, const char **what) {
    *what = IDENTITY;
    return set_identity(NULL, address);
}

/* -- all of it -------------------------------------------------------------------------------- */

int names_set_host(const char *name, const char **what) {
    char old[HOST_MAX + 1] = "";
    gethostname(old, sizeof old - 1);
    *what = "the host's name";
    if (sethostname(name, strlen(name)) < 0)
        return errno;
    int error;
    if ((error = write_line(*what = "/etc/hostname", name, ALWAYS, 0644)) != 0)
        return error;
    *what = HOSTS;
    if ((error = set_hosts(old, name)) != 0)
        return error;
    *what = IDENTITY;
    if ((error = set_identity(name, NULL)) != 0)
        return error;
    /* What the busybox guest answers over HTTP. */
    return write_line(*what = "/run/nexus/www/index.txt", name, IF_THERE, 0644);
}

int names_set_machine_id(const char *id, const char **what) {
    int error = write_line(*what = "/etc/machine-id", id, ALWAYS, 0444);
    if (error != 0)
        return error;
    return write_line(*what = "/var/lib/dbus/machine-id", id, IF_THERE, 0444);
}

int names_set_servers(char *const *servers, const char **what) {
    char *text = NULL;
    size_t length;
    *what = "/etc/resolv.conf";
    FILE *out = open_memstream(&text, &length);
    if (out == NULL)
        return ENOMEM;
    for (; *servers != NULL; servers++)
        fprintf(out, "nameserver %s\n", *servers);
    if (fclose(out) != 0)
        return ENOMEM;
    return write_file(*what, text, length, ALWAYS, 0644);
}
