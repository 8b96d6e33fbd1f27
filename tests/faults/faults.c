/* Faults on purpose: the n-th file operation below a folder, or the n-th large allocation, fails or kills the process.

   Loaded before all other libraries (LD_PRELOAD). Nothing fails until fault_arm is called; a forked process counts on
   its own. Counters are in memory that forked processes share with their parent. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, READ = 2, WRITE = 4, SYNC = 8, RENAME = 16, UNLINK = 32, MAKE = 64, ALLOCATE = 128 };
enum { ONCE, LASTING, SHORT, KILL_BEFORE, KILL_AFTER };

struct shared { long count, fired; char what[64]; };

static struct shared *shared;
static int kinds, mode, fault_errno;
static long nth;
static size_t large;
static char folder[PATH_MAX];
static size_t folder_length;

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

/* Get ready: operations on files below PATH count. */
int fault_setup(const char *path) {
    if (!shared) shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || strlen(path) >= sizeof folder) return -1;
    strcpy(folder, path);
    folder_length = strlen(path);
    return 0;
}

/* Let the N-th operation of KINDS (bits) fail with ERROR in the manner of MODE; allocations count from LARGE bytes. */
void fault_arm(int kinds_, long n, int error, int mode_, size_t large_) {
    memset(shared, 0, sizeof *shared);
    nth = n, fault_errno = error, mode = mode_, large = large_, kinds = kinds_;
}

void fault_disarm(void) { kinds = 0; }
long fault_count(void) { return shared->count; }
long fault_fired(void) { return shared->fired; }
const char *fault_what(void) { return shared->what; }

static int is_below(const char *path) {
    char here[PATH_MAX];
    if (!path || !folder_length) return 0;
    if (path[0] == '/') return !strncmp(path, folder, folder_length);
    return syscall(SYS_getcwd, here, sizeof here) > 0 && !strncmp(here, folder, folder_length);
}

static int is_open_below(int descriptor) {
    char link[64], path[PATH_MAX];
    ssize_t length;
    if (descriptor <= 2) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = syscall(SYS_readlink, link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return is_below(path);
}

/* Count an operation; true if it is to fail. */
static int fails(int kind, const char *what) {
    long number = __sync_add_and_fetch(&shared->count, 1);
    if (number != nth && !(number > nth && mode == LASTING)) return 0;
    if (!shared->fired) strncpy(shared->what, what, sizeof shared->what - 1);
    shared->fired++;
    if (mode == KILL_BEFORE) raise(SIGKILL);
    if (mode == KILL_AFTER || mode == SHORT) return 0;
    errno = fault_errno;
    return 1;
}

static int is_due(void) { return shared->fired && shared->count == nth; }
static void after(void) { if (mode == KILL_AFTER && is_due()) raise(SIGKILL); }
static int counts(int kind) { return kinds & kind; }

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, #name)
#define GUARD(kind, condition, what, result) if (counts(kind) && (condition) && fails(kind, what)) return result
#define DONE(kind, condition, result) do { \
    __typeof__(result) r = (result); \
    int e = errno; \
    if (counts(kind) && (condition)) after(); \
    errno = e; \
    return r; \
} while (0)

#define OPENER(name) int name(const char *path, int flags, ...) { \
    mode_t bits = 0; va_list rest; REAL(name); \
    if (flags & (O_CREAT | __O_TMPFILE)) { va_start(rest, flags); bits = va_arg(rest, mode_t); va_end(rest); } \
    GUARD(OPEN, is_below(path), flags & O_CREAT ? "open for writing" : "open", -1); \
    return real(path, flags, bits); }
OPENER(open)
OPENER(open64)

#define OPENER_AT(name) int name(int at, const char *path, int flags, ...) { \
    mode_t bits = 0; va_list rest; REAL(name); \
    if (flags & (O_CREAT | __O_TMPFILE)) { va_start(rest, flags); bits = va_arg(rest, mode_t); va_end(rest); } \
    GUARD(OPEN, path[0] == '/' || at == AT_FDCWD ? is_below(path) : is_open_below(at), "open", -1); \
    return real(at, path, flags, bits); }
OPENER_AT(openat)
OPENER_AT(openat64)

FILE *fopen(const char *path, const char *how) {
    REAL(fopen); GUARD(OPEN, is_below(path), "fopen", NULL); return real(path, how);
}
FILE *fopen64(const char *path, const char *how) {
    REAL(fopen64); GUARD(OPEN, is_below(path), "fopen", NULL); return real(path, how);
}

ssize_t read(int d, void *to, size_t size) {
    REAL(read); GUARD(READ, is_open_below(d), "read", -1); return real(d, to, size);
}
ssize_t pread(int d, void *to, size_t size, off_t from) {
    REAL(pread); GUARD(READ, is_open_below(d), "pread", -1); return real(d, to, size, from);
}
ssize_t pread64(int d, void *to, size_t size, off64_t from) {
    REAL(pread64); GUARD(READ, is_open_below(d), "pread", -1); return real(d, to, size, from);
}

/* A short write: half of what was to be written; the disk is full from then on. */
static size_t shortened(int kind, size_t size) {
    if (!counts(kind) || mode != SHORT || !is_due()) return size;
    mode = LASTING;
    return size / 2;
}

ssize_t write(int d, const void *from, size_t size) {
    REAL(write); int below = counts(WRITE) && is_open_below(d);
    GUARD(WRITE, below, "write", -1);
    size_t left = below ? shortened(WRITE, size) : size;
    DONE(WRITE, below, real(d, from, left));
}
ssize_t pwrite64(int d, const void *from, size_t size, off64_t to) {
    REAL(pwrite64); int below = counts(WRITE) && is_open_below(d);
    GUARD(WRITE, below, "pwrite", -1);
    size_t left = below ? shortened(WRITE, size) : size;
    DONE(WRITE, below, real(d, from, left, to));
}
ssize_t writev(int d, const struct iovec *parts, int count) {
    REAL(writev); int below = counts(WRITE) && is_open_below(d);
    GUARD(WRITE, below, "writev", -1);
    DONE(WRITE, below, real(d, parts, count));
}
ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    REAL(sendfile); int below = counts(WRITE) && is_open_below(to);
    GUARD(WRITE, below, "sendfile", -1);
    size_t left = below ? shortened(WRITE, size) : size;
    DONE(WRITE, below, real(to, from, offset, left));
}
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) {
    REAL(copy_file_range); int below = counts(WRITE) && is_open_below(to);
    GUARD(WRITE, below, "copy_file_range", -1);
    DONE(WRITE, below, real(from, a, to, b, size, flags));
}
int ftruncate64(int d, off64_t length) {
    REAL(ftruncate64); GUARD(WRITE, is_open_below(d), "ftruncate", -1); return real(d, length);
}

int fsync(int d) {
    REAL(fsync); int below = counts(SYNC) && is_open_below(d);
    GUARD(SYNC, below, "fsync", -1); DONE(SYNC, below, real(d));
}
int fdatasync(int d) {
    REAL(fdatasync); int below = counts(SYNC) && is_open_below(d);
    GUARD(SYNC, below, "fdatasync", -1); DONE(SYNC, below, real(d));
}

int rename(const char *from, const char *to) {
    REAL(rename); GUARD(RENAME, is_below(to), "rename", -1); DONE(RENAME, is_below(to), real(from, to));
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat); GUARD(RENAME, is_below(to), "rename", -1); DONE(RENAME, is_below(to), real(a, from, b, to));
}
int link(const char *from, const char *to) {
    REAL(link); GUARD(RENAME, is_below(to), "link", -1); DONE(RENAME, is_below(to), real(from, to));
}

int unlink(const char *path) {
    REAL(unlink); GUARD(UNLINK, is_below(path), "unlink", -1); DONE(UNLINK, is_below(path), real(path));
}
int unlinkat(int at, const char *path, int flags) {
    REAL(unlinkat); int below = counts(UNLINK) && (path[0] == '/' || at == AT_FDCWD ? is_below(path) : is_open_below(at));
    GUARD(UNLINK, below, flags & AT_REMOVEDIR ? "rmdir" : "unlink", -1);
    DONE(UNLINK, below, real(at, path, flags));
}
int rmdir(const char *path) {
    REAL(rmdir); GUARD(UNLINK, is_below(path), "rmdir", -1); DONE(UNLINK, is_below(path), real(path));
}
int mkdir(const char *path, mode_t bits) {
    REAL(mkdir); GUARD(MAKE, is_below(path), "mkdir", -1); DONE(MAKE, is_below(path), real(path, bits));
}

#define LARGE(size) (counts(ALLOCATE) && (size) >= large && fails(ALLOCATE, "allocate"))
void *malloc(size_t size) { return LARGE(size) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return LARGE(count * size) ? NULL : __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { return LARGE(size) ? NULL : __libc_realloc(old, size); }
void *memalign(size_t to, size_t size) { return LARGE(size) ? NULL : __libc_memalign(to, size); }
void *aligned_alloc(size_t to, size_t size) { return LARGE(size) ? NULL : __libc_memalign(to, size); }
int posix_memalign(void **result, size_t to, size_t size) {
    void *memory = LARGE(size) ? NULL : __libc_memalign(to, size);
    if (!memory) return ENOMEM;
    *result = memory;
    return 0;
}
