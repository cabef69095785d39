/* Sweeps cache tags and prints what it did.
 *
 *   cc sweep.c $(pkg-config --cflags --libs tagsweep) && ./a.out redis://127.0.0.1 [PREFIX]
 *
 * An interrupt (Ctrl-C) ends it soon, with what was removed verified and the lock released.
 * Exit status: 0 done, 2 wrong usage, 3 another sweep runs, 4 ended early, 1 anything else. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <tagsweep.h>

struct watcher {
  unsigned long calls;
};

static volatile sig_atomic_t interrupted = 0;

static void on_interrupt(int sig) {
  interrupted = 1;
  (void)sig;
  signal(SIGINT, on_interrupt); /* C alone does not say that it stays */
}

static int32_t on_progress(void *context, const tagsweep_report *report, double share) {
  struct watcher *watcher = (struct watcher *)context;
  if (++watcher->calls % 1000 == 0) {
    fprintf(stderr, "%3.0f %%, %llu references removed\n", 100.0 * share,
            (unsigned long long)report->references_removed);
  }
  return interrupted; /* anything but 0 ends the sweep soon */
}

int main(int argc, char **argv) {
  tagsweep_client *client = NULL;
  tagsweep_options options;
  tagsweep_report report;
  struct watcher watcher = {0};
  const char *prefix;
  char error[512];
  int32_t status;

  if (argc < 2 || argc > 3) {
    fprintf(stderr, "usage: %s URL [PREFIX]\n", argv[0]);
    return 2;
  }
  prefix = argc == 3 ? argv[2] : "";
  status = tagsweep_client_new(argv[1], strlen(argv[1]), prefix, strlen(prefix), 0, &client, error,
                               sizeof error);
  if (status != TAGSWEEP_OK) {
    fprintf(stderr, "client: %s\n", error);
    return 1;
  }
  signal(SIGINT, on_interrupt);
  tagsweep_options_init(&options);
  options.max_duration_ms = 3600 * 1000;
  status = tagsweep_sweep(client, &options, on_progress, &watcher, &report, error, sizeof error);
  tagsweep_client_free(client);
  if (status == TAGSWEEP_OK || status == TAGSWEEP_LOST || status == TAGSWEEP_STOPPED) {
    printf("%llu tags removed, %llu pruned, %llu references removed in %.2f s\n",
           (unsigned long long)report.tags_removed, (unsigned long long)report.tags_pruned,
           (unsigned long long)report.references_removed, report.duration_s);
  }
  switch (status) {
  case TAGSWEEP_OK:
    return 0;
  case TAGSWEEP_HELD:
    fprintf(stderr, "another sweep runs: %s\n", error);
    return 3;
  case TAGSWEEP_LOST:
  case TAGSWEEP_STOPPED:
    fprintf(stderr, "ended early (%s): %s\n", report.reason ? report.reason : "not begun", error);
    return 4;
  default:
    fprintf(stderr, "%s: %s\n", tagsweep_status_text(status), error);
    return 1;
  }
}
