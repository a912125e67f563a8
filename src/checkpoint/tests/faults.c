/* Kills the process, or fails the call, at the FAULT_AT-th operation on a path below FAULT_PATH (as far as FAULT_LAST, for
 * errors that stay). FAULT_KIND: kill (a write is first done by half), or an errno's name for calls that create, write, sync
 * or rename. FAULT_MARK gets the name of the call and its path when the fault comes. FAULT_RANK: only this MPI rank counts.
 * FAULT_WRITES: of this many writes one counts. FAULT_NO_EXCHANGE: a filesystem that cannot exchange two names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long seen, writes;

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

/* Whether this process is the one to meet the fault. */
static int chosen(void) {
    const char *want = getenv("FAULT_RANK"), *own = getenv("OMPI_COMM_WORLD_RANK");
    if (!own) own = getenv("PMI_RANK");
    return !want || (own && !strcmp(want, own));
}

/* Whether the fault comes now, in `call` on `path`. */
static int due_on(const char *call, const char *path) {
    const char *at = getenv("FAULT_AT"), *last = getenv("FAULT_LAST");
    if (!at || !chosen()) return 0;
    long n = ++seen;
    if (n < atol(at) || n > atol(last ? last : at)) return 0;
    if (n == atol(at)) {
        char text[4200];
        int len = snprintf(text, sizeof text, "%s %s", call, path);
        int fd = REAL(open)(getenv("FAULT_MARK"), O_CREAT | O_WRONLY, 0600);
        if (fd >= 0 && REAL(write)(fd, text, len) >= 0) REAL(close)(fd);
    }
    return 1;
}

static int due(const char *call, int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n < 0 ? 0 : n] = 0;
    return due_on(call, path);
}

/* One write in FAULT_WRITES counts. */
static int due_write(int fd) {
    const char *each = getenv("FAULT_WRITES");
    return writes++ % (each ? atol(each) : 1) == 0 && due("write", fd);
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
    if ((flags & O_CREAT) && below(path) && due_on("open", path)) return fault();
    return REAL(open64)(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    if (below(path) && due_on("mkdir", path)) return fault();
    return REAL(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
    if (below(to) && due_on("rename", to)) return fault();
    return REAL(rename)(from, to);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    if (getenv("FAULT_NO_EXCHANGE")) {
        errno = EINVAL;
        return -1;
    }
    if (below(to) && due_on("exchange", to)) return fault();
    return REAL(renameat2)(from_dir, from, to_dir, to, flags);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    if (below(to) && due_on("link", to)) return fault();
    return REAL(linkat)(from_dir, from, to_dir, to, flags);
}

ssize_t write(int fd, const void *buf, size_t n) {
    if (fd_below(fd) && due_write(fd)) {
        if (killing()) REAL(write)(fd, buf, n / 2);
        return fault();
    }
    return REAL(write)(fd, buf, n);
}

ssize_t pwrite64(int fd, const void *buf, size_t n, off64_t at) {
    if (fd_below(fd) && due_write(fd)) {
        if (killing()) REAL(pwrite64)(fd, buf, n / 2, at);
        return fault();
    }
    return REAL(pwrite64)(fd, buf, n, at);
}

int ftruncate64(int fd, off64_t n) {
    if (fd_below(fd) && due("truncate", fd)) return fault();
    return REAL(ftruncate64)(fd, n);
}

int fsync(int fd) {
    if (fd_below(fd) && due("fsync", fd)) return fault();
    return REAL(fsync)(fd);
}

/* Removing is what tidies up after an error, so it is only ever killed. */
int unlink(const char *path) {
    if (killing() && below(path) && due_on("unlink", path)) return fault();
    return REAL(unlink)(path);
}

int unlinkat(int dir, const char *name, int flags) {
    if (killing() && (name[0] == '/' ? below(name) : fd_below(dir)) && due_on("unlink", name)) return fault();
    return REAL(unlinkat)(dir, name, flags);
}

int rmdir(const char *path) {
    if (killing() && below(path) && due_on("rmdir", path)) return fault();
    return REAL(rmdir)(path);
}
