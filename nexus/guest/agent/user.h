/* Whom a program runs as. Read from /etc/passwd and /etc/group alone: a static program has no
 * other name services. */
#ifndef USER_H
#define USER_H

#include <stdbool.h>
#include <sys/types.h>

#define USER_GROUPS_MAX 64

struct user {
    char name[256];
    char home[4096];
    char shell[4096];
    uid_t uid;
    gid_t gid;
    gid_t groups[USER_GROUPS_MAX];
    size_t group_count;
};

/* Looks up a name or a number; false when there is no such user. A number that nobody has is a user
 * without a home, in a group of the same number and no other. */
bool user_find(const char *name_or_uid, struct user *user);

/* Becomes the user, for good; false on an error, which errno names. */
bool user_become(const struct user *user);

#endif
