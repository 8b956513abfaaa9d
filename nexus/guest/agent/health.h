/* health: that the agent is there, and what the guest says of itself. */
#ifndef HEALTH_H
#define HEALTH_H

void health_report(int connection);

#endif
