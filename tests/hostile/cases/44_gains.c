// What the process can do: as whom it runs, and with which capabilities.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void) {
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    printf("user %s", getuid() == geteuid() ? "same" : "other");
    while (status && fgets(line, sizeof line, status))
        if (!strncmp(line, "CapEff", 6) || !strncmp(line, "CapPrm", 6))
            printf(" %s", strtok(line + 8, "\n"));
    puts("");
    return 0;
}
