/* Waits in line for a lock, works under a renewed lease, and stops when it is lost.
 *
 *   cc renew.c $(pkg-config --cflags --libs tagsweep) && ./a.out redis://127.0.0.1 job 5000 2000
 *
 * Exit status: 0 done, 3 held by another all the time, 4 lost, 1 anything else. */
#define _POSIX_C_SOURCE 199309L
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tagsweep.h>
#include <time.h>

static volatile sig_atomic_t interrupted = 0;

static void interrupt(int signal) {
  (void)signal;
  interrupted = 1;
}

static bool keep_waiting(void *context) {
  (void)context;
  return !interrupted;
}

/* Called by the library's thread. */
static void on_lost(void *context, const char *reason) {
  (void)context;
  fprintf(stderr, "lost: %s\n", reason);
}

static void sleep_ms(long ms) {
  struct timespec span;
  span.tv_sec = ms / 1000;
  span.tv_nsec = ms % 1000 * 1000000;
  nanosleep(&span, NULL);
}

int main(int argc, char **argv) {
  tagsweep_client *client = NULL;
  tagsweep_lock *lock = NULL;
  tagsweep_lock_options options;
  char error[512] = "";
  uint64_t fence = 0;
  long work;
  int32_t status;

  if (argc != 5) {
    fprintf(stderr, "usage: %s URL NAME WAIT_MS WORK_MS\n", argv[0]);
    return 2;
  }
  signal(SIGINT, interrupt);
  signal(SIGTERM, interrupt);
  tagsweep_lock_options_init(&options);
  options.ttl_ms = 3000;
  status = tagsweep_client_new(argv[1], strlen(argv[1]), "", 0, 0, &client, error, sizeof error);
  if (status == TAGSWEEP_OK) {
    status = tagsweep_lock_new_with(client, argv[2], strlen(argv[2]), &options, &lock, error, sizeof error);
  }
  if (status == TAGSWEEP_OK) {
    tagsweep_lock_on_lost(lock, on_lost, NULL);
    status = tagsweep_lock_acquire_while(lock, strtoull(argv[3], NULL, 10), keep_waiting, NULL, &fence, error,
                                         sizeof error);
  }
  if (status != TAGSWEEP_OK) {
    fprintf(stderr, "%s: %s\n", tagsweep_status_text(status), error);
  } else {
    printf("acquired %llu\n", (unsigned long long)fence);
    fflush(stdout);
    for (work = strtol(argv[4], NULL, 10); work > 0 && !interrupted; work -= 10) {
      if (!tagsweep_lock_is_held(lock)) {
        break;
      }
      sleep_ms(10);
    }
    status = tagsweep_lock_is_held(lock) ? tagsweep_lock_release(lock, error, sizeof error) : TAGSWEEP_LOST;
    printf("%s\n", status == TAGSWEEP_OK ? "released" : "lost");
  }
  tagsweep_lock_free(lock);
  tagsweep_client_free(client);
  return status == TAGSWEEP_OK ? 0 : status == TAGSWEEP_HELD ? 3 : status == TAGSWEEP_LOST ? 4 : 1;
}
