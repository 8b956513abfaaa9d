/* Pseudo terminals. */
#ifndef TERMINAL_H
#define TERMINAL_H

#include <stdbool.h>

struct terminal {
    int master, slave;
};

/* Mounts /dev/pts if nobody has done so. */
void terminal_prepare(void);

/* False on an error, which errno names. */
bool terminal_open(struct terminal *terminal, unsigned short rows, unsigned short cols);

/* Gives it another size and tells the programs on it. */
void terminal_resize(int master, unsigned short rows, unsigned short cols);

/* The character that ends input on it. */
unsigned char terminal_end_of_input(int master);

#endif
