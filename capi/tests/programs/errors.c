/* Prints what each act of a lock comes to on a server: `act code`, a line each. */
#include <stdio.h>
#include <string.h>
#include <tagsweep.h>

#define NAME(status)                                                                              \
  case status:                                                                                    \
    return #status

static const char *name(int32_t status) {
  switch (status) {
    NAME(TAGSWEEP_OK);
    NAME(TAGSWEEP_HELD);
    NAME(TAGSWEEP_LOST);
    NAME(TAGSWEEP_STOPPED);
    NAME(TAGSWEEP_ERR_INVALID);
    NAME(TAGSWEEP_ERR_NULL);
    NAME(TAGSWEEP_ERR_UNREACHABLE);
    NAME(TAGSWEEP_ERR_DENIED);
    NAME(TAGSWEEP_ERR_UNKNOWN);
    NAME(TAGSWEEP_ERR_REFUSED);
    NAME(TAGSWEEP_ERR_WRONG_TYPE);
    NAME(TAGSWEEP_ERR_UNPROVEN);
    NAME(TAGSWEEP_ERR_REENTRANT);
    NAME(TAGSWEEP_ERR_UNCONFIRMED);
    NAME(TAGSWEEP_ERR_PANIC);
  }
  return "an unknown code";
}

static char error[512];

static void tell(const char *act, int32_t status) {
  printf("%s %s %s\n", act, name(status), error);
  error[0] = '\0';
}

int main(int argc, char **argv) {
  static const char owner[] = "0123456789abcdef:7|host|1|test";
  tagsweep_client *client = NULL;
  tagsweep_lock *lock = NULL;
  tagsweep_lock *ours = NULL;
  uint64_t fence = 0;

  if (argc != 2 ||
      tagsweep_client_new(argv[1], strlen(argv[1]), "", 0, 3000, &client, error, sizeof error) !=
          TAGSWEEP_OK ||
      tagsweep_lock_new(client, "job", 3, 30000, &lock, error, sizeof error) != TAGSWEEP_OK) {
    fprintf(stderr, "%s\n", error);
    return 1;
  }
  tell("acquire", tagsweep_lock_acquire(lock, 0, &fence, error, sizeof error));
  if (tagsweep_lock_restore(client, "job", 3, owner, sizeof owner - 1, NULL, &ours, error,
                            sizeof error) != TAGSWEEP_OK) {
    fprintf(stderr, "%s\n", error);
    return 1;
  }
  tell("verify", tagsweep_lock_verify(ours, error, sizeof error));
  tell("extend", tagsweep_lock_extend(ours, 0, error, sizeof error));
  tell("release", tagsweep_lock_release(ours, error, sizeof error));
  tagsweep_lock_free(ours);
  tagsweep_lock_free(lock);
  tagsweep_client_free(client);
  return 0;
}
