/* Memory that is refused at random, to one library of a process: preload this, and give it the library's addresses. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static atomic_uintptr_t first, end;
static atomic_uint_least64_t state, refused;
static atomic_uint_least32_t rate;

void failing_library(uintptr_t from, uintptr_t to) { first = from, end = to; }
/* Of 2^32 requests this many are refused on average; 0 ends it. */
void failing_rate(uint32_t of_all, uint64_t seed) { state = seed, rate = of_all; }
uint64_t failing_refused(void) { return refused; }

static int fails(void *caller) {
  uintptr_t at = (uintptr_t)caller;
  if (!rate || at < first || at >= end) return 0;
  uint64_t z = atomic_fetch_add(&state, 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  if ((uint32_t)(z ^ (z >> 31)) >= rate) return 0;
  refused++;
  errno = ENOMEM;
  return 1;
}

#define CALLER __builtin_return_address(0)
void *malloc(size_t size) { return fails(CALLER) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return fails(CALLER) ? NULL : __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { return fails(CALLER) ? NULL : __libc_realloc(old, size); }
void *aligned_alloc(size_t align, size_t size) { return fails(CALLER) ? NULL : __libc_memalign(align, size); }
int posix_memalign(void **made, size_t align, size_t size) {
  void *found = fails(CALLER) ? NULL : __libc_memalign(align, size);
  if (!found) return ENOMEM;
  *made = found;
  return 0;
}
