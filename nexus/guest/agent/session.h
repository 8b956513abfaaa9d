/* Ending all that an exec has started: its session. */
#ifndef SESSION_H
#define SESSION_H

#include <sys/types.h>

/* SIGHUP to the session that `leader` leads, then SIGKILL to what is left of it when the leader has
 * ended, or after two seconds. The leader must not have been waited for: that keeps its number. */
void session_end(pid_t leader, int pidfd);

#endif
