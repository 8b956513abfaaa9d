#define _GNU_SOURCE
#include "terminal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

void terminal_prepare(void) {
    if (access("/dev/pts/ptmx", F_OK) == 0)
        return;
    mkdir("/dev/pts", 0755);
    mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=620,ptmxmode=666");
}

bool terminal_open(struct terminal *terminal, unsigned short rows, unsigned short cols) {
    terminal->master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (terminal->master < 0)
        return false;
    terminal->slave = -1;
    if (grantpt(terminal->master) == 0 && unlockpt(terminal->master) == 0)
        terminal->slave = ioctl(terminal->master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (terminal->slave < 0) {
        close(terminal->master);
        return false;
    }
    terminal_resize(terminal->master, rows, cols);
    return true;
}

void terminal_resize(int master, unsigned short rows, unsigned short cols) {
    struct winsize size = {.ws_row = rows, .ws_col = cols};
    ioctl(master, TIOCSWINSZ, &size);
}

unsigned char terminal_end_of_input(int master) {
    struct termios settings;
    return tcgetattr(master, &settings) == 0 ? settings.c_cc[VEOF] : 4;
}
