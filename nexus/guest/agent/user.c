#define _GNU_SOURCE
#include "user.h"

#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void fill(struct user *user, const char *name, const char *home, const char *shell) {
    snprintf(user->name, sizeof user->name, "%s", name);
    snprintf(user->home, sizeof user->home, "%s", home[0] == '/' ? home : "/");
    snprintf(user->shell, sizeof user->shell, "%s", shell[0] == '/' ? shell : "/bin/sh");
}

static bool is_number(const char *text, uid_t *out) {
    char *end;
    unsigned long parsed = strtoul(text, &end, 10);
    *out = (uid_t)parsed;
    return text[0] >= '0' && text[0] <= '9' && *end == 0 && parsed < (uid_t)-1;
}

static bool find_in_passwd(const char *name, bool by_uid, uid_t uid, struct user *user) {
    FILE *file = fopen("/etc/passwd", "re");
    if (file == NULL)
        return false;
    const struct passwd *entry;
    while ((entry = fgetpwent(file)) != NULL) {
        if (by_uid ? entry->pw_uid != uid : strcmp(entry->pw_name, name) != 0)
            continue;
        fill(user, entry->pw_name, entry->pw_dir, entry->pw_shell);
        user->uid = entry->pw_uid;
        user->gid = entry->pw_gid;
        break;
    }
    fclose(file);
    return entry != NULL;
}

static void find_groups(struct user *user) {
    user->groups[0] = user->gid;
    user->group_count = 1;
    FILE *file = fopen("/etc/group", "re");
    if (file == NULL)
        return;
    const struct group *entry;
    while ((entry = fgetgrent(file)) != NULL && user->group_count < USER_GROUPS_MAX) {
        for (char **member = entry->gr_mem; *member != NULL; member++)
            if (strcmp(*member, user->name) == 0 && entry->gr_gid != user->gid) {
                user->groups[user->group_count++] = entry->gr_gid;
                break;
            }
    }
    fclose(file);
}

bool user_find(const char *name_or_uid, struct user *user) {
    uid_t uid = 0;
    bool by_uid = is_number(name_or_uid, &uid);
    bool is_root = by_uid ? uid == 0 : strcmp(name_or_uid, "root") == 0;
    if (!find_in_passwd(name_or_uid, by_uid, uid, user)) {
        if (!by_uid && !is_root)
            return false;
        fill(user, is_root ? "root" : name_or_uid, is_root ? "/root" : "/", "/bin/sh");
        user->uid = user->gid = uid;
    }
    find_groups(user);
    return true;
}

bool user_become(const struct user *user) {
    if (geteuid() == user->uid && user->uid != 0)
        return true; /* nothing to become, and nobody who might */
    return setgroups(user->group_count, user->groups) == 0 && setgid(user->gid) == 0 &&
           setuid(user->uid) == 0;
}
