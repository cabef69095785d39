/* Prints what a sweep of cache tags would do, and does none of it.
 *
 *   cc plan.c $(pkg-config --cflags --libs tagsweep) && ./a.out redis://127.0.0.1 [PREFIX]
 *
 * Exit status: 0 done, 2 wrong usage, 4 a limit would end the sweep early, 1 anything else. */
#include <stdio.h>
#include <string.h>
#include <tagsweep.h>

static void on_sample(void *context, const char *tag, const char *entry, const char *why) {
  unsigned *shown = (unsigned *)context;
  printf("%s would lose %s: %s\n", tag, entry, why);
  ++*shown;
}

int main(int argc, char **argv) {
  tagsweep_client *client = NULL;
  tagsweep_report report;
  const char *prefix;
  char error[512];
  unsigned shown = 0;
  int32_t status;

  if (argc < 2 || argc > 3) {
    fprintf(stderr, "usage: %s URL [PREFIX]\n", argv[0]);
    return 2;
  }
  prefix = argc == 3 ? argv[2] : "";
  status = tagsweep_client_new(argv[1], strlen(argv[1]), prefix, strlen(prefix), 0, &client, error,
                               sizeof error);
  if (status == TAGSWEEP_OK) {
    status = tagsweep_plan(client, NULL, on_sample, &shown, &report, error, sizeof error);
  }
  tagsweep_client_free(client);
  if (status != TAGSWEEP_OK && status != TAGSWEEP_STOPPED) {
    fprintf(stderr, "%s: %s\n", tagsweep_status_text(status), error);
    return 1;
  }
  if (error[0] != '\0') {
    fprintf(stderr, "%s\n", error);
  }
  printf("%llu of %llu references would go, %u of them shown; %llu tags with their last one\n",
         (unsigned long long)report.references_removed,
         (unsigned long long)report.references_checked, shown,
         (unsigned long long)report.tags_removed);
  return status == TAGSWEEP_OK ? 0 : 4;
}
