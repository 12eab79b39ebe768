/* Preloaded library: after die_at_write(n, torn), the process dies by SIGKILL at its nth write.

   A write is any call that changes a file or a folder. A torn one is done by half first; else it
   dies right after the call. Files above standard error only, so that messages don't count. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/types.h>
#include <unistd.h>

static long left = 0;
static int half = 0;

void die_at_write(long n, int torn) { left = n; half = torn; }

static int now(void) { return left > 0 && --left == 0; }
static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define SIZED(name, declared, passed, halved)                    \
  ssize_t name declared {                                        \
    REAL(name);                                                  \
    int last = fd > 2 && now();                                  \
    if (last && half) { real halved; die(); }                    \
    ssize_t result = real passed;                                \
    if (last) die();                                             \
    return result;                                               \
  }
#define WHOLE(name, declared, passed)                            \
  int name declared {                                            \
    REAL(name);                                                  \
    int last = now();                                            \
    if (last && half) die();                                     \
    int result = real passed;                                    \
    if (last) die();                                             \
    return result;                                               \
  }

SIZED(write, (int fd, const void *data, size_t n), (fd, data, n), (fd, data, n / 2))
SIZED(pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at), (fd, data, n / 2, at))
SIZED(pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at), (fd, data, n / 2, at))
WHOLE(fsync, (int fd), (fd))
WHOLE(fdatasync, (int fd), (fd))
WHOLE(ftruncate, (int fd, off_t n), (fd, n))
WHOLE(ftruncate64, (int fd, off64_t n), (fd, n))
WHOLE(rename, (const char *from, const char *to), (from, to))
WHOLE(unlink, (const char *path), (path))
WHOLE(mkdir, (const char *path, mode_t mode), (path, mode))
