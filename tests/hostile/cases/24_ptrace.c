// Traces pid 1, its parent and a sibling, and reads their memory.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void tell(const char *what, long result) {
    printf("%s\t%s\n", what, result == -1 ? strerrorname_np(errno) : "done");
    fflush(stdout);
}

int main(int argc, char **argv) {
    pid_t sibling = fork();
    if (sibling == 0) {
        pause();
        _exit(0);
    }
    if (argc > 1) {  // only where pid 1 isn't the machine's
        tell("seize pid 1", ptrace(PTRACE_SEIZE, 1, 0, 0));
        tell("seize parent", ptrace(PTRACE_SEIZE, getppid(), 0, 0));
    }
    tell("seize sibling", ptrace(PTRACE_SEIZE, sibling, 0, 0));
    char here[8];
    struct iovec to = {here, sizeof here}, from = {&argc, sizeof argc};
    tell("read sibling", process_vm_readv(sibling, &to, 1, &from, 1, 0));
    tell("write sibling", process_vm_writev(sibling, &to, 1, &from, 1, 0));
    kill(sibling, SIGKILL);
    tell("trace me", ptrace(PTRACE_TRACEME, 0, 0, 0));
    return 0;
}
