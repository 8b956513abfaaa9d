/* Connections over a socket that listens: vsock in a guest. */
#ifndef LISTENER_H
#define LISTENER_H

/* A socket on the agent's vsock port, or -1 where there is no vsock. */
int listener_open(void);

/* Serves for ever. */
_Noreturn void listener_serve(int listener);

#endif
