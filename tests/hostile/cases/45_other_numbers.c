// The same calls by the numbers of 32-bit programs and of x32, which a filter may overlook.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static long by_int_80(long number, long argument) {
    long result = -1;
#ifdef __x86_64__
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(argument) : "memory", "r8", "r9", "r10", "r11");
#else
    (void)number, (void)argument;
#endif
    return result;
}

// In a child each: some filters kill for it.
static void tell(const char *what, int is_x32) {
    int status;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (is_x32)
            _exit(syscall(0x40000000 + 272, 0x10000000) == -1 ? errno : 0);  // unshare
        by_int_80(20, 0);  // getpid
        _exit(0);
    }
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status))
        printf("%s\t%s\n", what, strsignal(WTERMSIG(status)));
    else
        printf("%s\t%s\n", what, WEXITSTATUS(status) ? strerrorname_np(WEXITSTATUS(status)) : "done");
}

int main(void) {
    tell("32-bit", 0);
    tell("x32", 1);
    return 0;
}
