/* The virtio-serial port that carries all connections where there is no vsock. */
#ifndef PORT_H
#define PORT_H

/* Opens the port by its name, or -1 where there is none. */
int port_open(void);

/* Serves the connections on it for ever; returns when it is gone. */
void port_serve(int port);

#endif
