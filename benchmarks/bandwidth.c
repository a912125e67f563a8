/* GB/s at which THREADS threads read memory, each its own part of BYTES, far more than any cache: the limit that decoding is held
   against. One line for each pass; the first touches the pages and is not counted.
   cc -O3 -march=native -pthread bandwidth.c -o bandwidth && ./bandwidth THREADS BYTES PASSES */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef uint64_t line __attribute__((vector_size(64)));
struct part {
  const line* at;
  size_t lines;
  uint64_t sum;
};

static void* pass(void* context) {
  struct part* p = context;
  /* Eight streams of adjacent lines, as a prefetcher likes them, asked for ahead of their use. */
  line sums[8] = {0};
  for (size_t i = 0; i + 8 <= p->lines; i += 8) {
    for (int j = 0; j < 8; j++) {
      __builtin_prefetch((const char*)(p->at + i + j) + 4096);
      sums[j] ^= p->at[i + j];
    }
  }
  for (int j = 0; j < 8; j++)
    for (int k = 0; k < 8; k++) p->sum ^= sums[j][k];
  return 0;
}

int main(int argc, char** argv) {
  if (argc != 4) return fprintf(stderr, "bandwidth THREADS BYTES PASSES\n"), 2;
  int threads = atoi(argv[1]), passes = atoi(argv[3]);
  size_t lines = strtoull(argv[2], 0, 10) / sizeof(line) / threads;
  line* all = aligned_alloc(4096, lines * threads * sizeof(line));
  if (!all || threads < 1 || threads > 256) return fprintf(stderr, "no memory, or no threads\n"), 1;
  for (size_t i = 0; i < lines * threads; i++) all[i] = (line){i};
  for (int n = 0; n < passes; n++) {
    struct part parts[256];
    pthread_t ids[256];
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int t = 0; t < threads; t++) {
      parts[t] = (struct part){all + t * lines, lines, 0};
      if (pthread_create(&ids[t], 0, pass, &parts[t])) return 1;
    }
    uint64_t sum = 0;
    for (int t = 0; t < threads; t++) pthread_join(ids[t], 0), sum ^= parts[t].sum;
    clock_gettime(CLOCK_MONOTONIC, &b);
    double s = (b.tv_sec - a.tv_sec) + 1e-9 * (b.tv_nsec - a.tv_nsec);
    printf("%.3f %lx\n", lines * threads * sizeof(line) / s / 1e9, (unsigned long)sum);
  }
  return 0;
}
