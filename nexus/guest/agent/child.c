#define _GNU_SOURCE
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "answer.h"
#include "frame.h"
#include "memory.h"
#include "terminal.h"
#include "user.h"

#define PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* The program's ends, to become its descriptors 0, 1 and 2. */
struct stdio {
    int in, out, err;
};

/* What went wrong between fork and exec, sent through a pipe that a successful exec closes. */
struct failure {
    int error;
    enum { BECOMING, ENTERING, RUNNING } step;
};

static bool make_pipes(struct child *child, struct stdio *stdio) {
    int in[2], out[2], err[2];
    if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
        return false;
    *stdio = (struct stdio){.in = in[0], .out = out[1], .err = err[1]};
    child->in = in[1];
    child->out = out[0];
    child->err = err[0];
    return true;
}

static bool make_terminal(const struct request *request, const struct user *user,
                          struct child *child, struct stdio *stdio) {
    struct terminal terminal;
    if (!terminal_open(&terminal, request->rows, request->cols))
        return false;
    if (user->uid != geteuid() && fchown(terminal.slave, user->uid, (gid_t)-1) < 0)
        return false;
    *stdio = (struct stdio){terminal.slave, terminal.slave, terminal.slave};
    child->in = fcntl(terminal.master, F_DUPFD_CLOEXEC, 0);
    child->out = terminal.master;
    child->err = -1;
    return child->in >= 0;
}

static void set_environment(const struct request *request, const struct user *user) {
    clearenv();
    setenv("PATH", PATH, 1);
    setenv("HOME", user->home, 1);
    setenv("USER", user->name, 1);
    setenv("LOGNAME", user->name, 1);
    setenv("SHELL", user->shell, 1);
    for (char **entry = request->env; *entry != NULL; entry++)
        putenv(*entry);
}

static bool enter(const struct request *request, const struct user *user) {
    if (request->cwd != NULL)
        return chdir(request->cwd) == 0;
    return chdir(user->home) == 0 || chdir("/") == 0;
}

static void reset_signals(void) {
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void become(const struct request *request, const struct user *user,
                             const struct stdio *stdio, int report) {
    struct failure failure = {.step = RUNNING};
    reset_signals();
    memory_rank(MEMORY_AS_OTHERS);
    setsid();
    if (request->tty)
        ioctl(stdio->in, TIOCSCTTY, 0);
    dup2(stdio->in, 0);
    dup2(stdio->out, 1);
    dup2(stdio->err, 2);
    umask(022);
    if (!user_become(user))
        failure.step = BECOMING;
    else if (!enter(request, user))
        failure.step = ENTERING;
    else {
        set_environment(request, user);
        execvp(request->args[0], request->args);
    }
    failure.error = errno;
    write_all(report, &failure, sizeof failure);
    _exit(127);
}

static void tell(int connection, const struct request *request, const struct failure *failure) {
    if (failure->step == BECOMING)
        fail_errno(connection, failure->error, request->user);
    else if (failure->step == ENTERING)
        fail_errno(connection, failure->error, request->cwd != NULL ? request->cwd : "/");
    else
        fail_errno(connection, failure->error, request->args[0]);
}

bool child_start(const struct request *request, int connection, struct child *child) {
    static struct user user;
    if (!user_find(request->user, &user)) {
        fail(connection, "unknown-user", "there is no user %s", request->user);
        return false;
    }
    struct stdio stdio;
    int report[2];
    bool made = request->tty ? make_terminal(request, &user, child, &stdio)
                             : make_pipes(child, &stdio);
    if (!made || pipe2(report, O_CLOEXEC) < 0) {
        fail_errno(connection, errno, request->tty ? "no terminal" : "no pipe");
        return false;
    }
    child->pid = fork();
    if (child->pid == 0)
        become(request, &user, &stdio, report[1]);
    if (child->pid < 0) {
        fail_errno(connection, errno, "no process");
        return false;
    }
    child->pidfd = (int)syscall(SYS_pidfd_open, child->pid, 0);
    close(report[1]);
    close(stdio.in);
    if (!request->tty) {
        close(stdio.out);
        close(stdio.err);
    }
    struct failure failure;
    bool failed = read(report[0], &failure, sizeof failure) == sizeof failure;
    close(report[0]);
    if (failed)
        tell(connection, request, &failure);
    return !failed;
}
