/* Kills the process, or fails the call, at the FAULT_AT-th operation on a path below FAULT_PATH. FAULT_KIND: kill (a
 * write is first done by half), or an errno's name for calls that create, write, sync or rename. FAULT_MARK is created
 * when the fault comes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static long seen;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int below(const char *path) {
    const char *root = getenv("FAULT_PATH");
    return root && path && strncmp(path, root, strlen(root)) == 0;
}

static int fd_below(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return below(path);
}

static int killing(void) {
    const char *kind = getenv("FAULT_KIND");
    return kind && strcmp(kind, "kill") == 0;
}

/* Whether the fault comes now. */
static int due(void) {
    const char *at = getenv("FAULT_AT");
    if (!at || ++seen != atol(at)) return 0;
    int fd = REAL(open)(getenv("FAULT_MARK"), O_CREAT | O_WRONLY, 0600);
    if (fd >= 0) REAL(close)(fd);
    return 1;
}

static int fault(void) {
    const char *kind = getenv("FAULT_KIND");
    if (killing()) raise(SIGKILL);
    errno = !strcmp(kind, "ENOSPC") ? ENOSPC : !strcmp(kind, "EDQUOT") ? EDQUOT : !strcmp(kind, "EROFS") ? EROFS : EIO;
    return -1;
}

int open64(const char *path, int flags, ...) {
    va_list ap;
    va_start(ap, flags);
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, int) : 0;
    va_end(ap);
    if ((flags & O_CREAT) && below(path) && due()) return fault();
    return REAL(open64)(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    if (below(path) && due()) return fault();
    return REAL(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
    if (below(to) && due()) return fault();
    return REAL(rename)(from, to);
}

ssize_t write(int fd, const void *buf, size_t n) {
    if (fd_below(fd) && due()) {
        if (killing()) REAL(write)(fd, buf, n / 2);
        return fault();
    }
    return REAL(write)(fd, buf, n);
}

ssize_t pwrite64(int fd, const void *buf, size_t n, off64_t at) {
    if (fd_below(fd) && due()) {
        if (killing()) REAL(pwrite64)(fd, buf, n / 2, at);
        return fault();
    }
    return REAL(pwrite64)(fd, buf, n, at);
}

int ftruncate64(int fd, off64_t n) {
    if (fd_below(fd) && due()) return fault();
    return REAL(ftruncate64)(fd, n);
}

int fsync(int fd) {
    if (fd_below(fd) && due()) return fault();
    return REAL(fsync)(fd);
}

/* Removing is what tidies up after an error, so it is only ever killed. */
int unlink(const char *path) {
    if (killing() && below(path) && due()) return fault();
    return REAL(unlink)(path);
}

int unlinkat(int dir, const char *name, int flags) {
    if (killing() && (name[0] == '/' ? below(name) : fd_below(dir)) && due()) return fault();
    return REAL(unlinkat)(dir, name, flags);
}

int rmdir(const char *path) {
    if (killing() && below(path) && due()) return fault();
    return REAL(rmdir)(path);
}
