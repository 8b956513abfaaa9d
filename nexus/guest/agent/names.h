/* What a guest calls itself, in the kernel and in the files that its programs read. */
#ifndef NAMES_H
#define NAMES_H

#include <stdbool.h>
#include <stddef.h>

/* A host's name: letters, digits, `-`, `_` and `.`, at most 64. */
bool names_is_host(const char *name);

/* Renames the host: in the kernel, /etc/hostname, /etc/hosts, and the files in which our images keep
 * it. 0, or an errno, and then `what` says where. */
int names_set_host(const char *name, const char **what);

/* A machine-id: 32 digits of hexadecimal numbers, in small letters. */
bool names_is_machine_id(const char *id);
int names_set_machine_id(const char *id, const char **what);

/* Writes /etc/resolv.conf: these name servers. */
int names_set_servers(char *const *servers, const char **what);

/* Tells the files of our images the guest's first address. */
int names_set_address(const char *address, const char **what);

#endif
