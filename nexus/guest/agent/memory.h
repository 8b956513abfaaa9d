/* Who ends first when the guest's memory runs out. */
#ifndef MEMORY_H
#define MEMORY_H

/* The agent is the last, so that the host can still look into the guest; what it starts for the host
 * is as others are. */
#define MEMORY_LAST "-1000"
#define MEMORY_AS_OTHERS "0"

/* Only root may say so; for others nothing changes. */
void memory_rank(const char *rank);

#endif
