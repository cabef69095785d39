/* Takes a lock, works under it, gives it back.
 *
 *   cc lock.c $(pkg-config --cflags --libs tagsweep) && ./a.out redis://127.0.0.1 job
 *
 * Exit status: 0 done, 3 held by another, 1 anything else. */
#include <stdio.h>
#include <string.h>
#include <tagsweep.h>

static int failed(const char *what, int32_t status, const char *error) {
  fprintf(stderr, "%s: %s: %s\n", what, tagsweep_status_text(status), error);
  return status == TAGSWEEP_HELD ? 3 : 1;
}

int main(int argc, char **argv) {
  tagsweep_client *client = NULL;
  tagsweep_lock *lock = NULL;
  char error[512];
  uint64_t fence = 0;
  int32_t status;
  int code = 0;

  if (argc != 3) {
    fprintf(stderr, "usage: %s URL NAME\n", argv[0]);
    return 2;
  }
  if (tagsweep_abi_version() / 100 != TAGSWEEP_ABI_VERSION / 100 ||
      tagsweep_abi_version() < TAGSWEEP_ABI_VERSION) {
    fprintf(stderr, "this libtagsweep has another interface\n");
    return 1;
  }
  status = tagsweep_client_new(argv[1], strlen(argv[1]), "", 0, 0, &client, error, sizeof error);
  if (status != TAGSWEEP_OK) {
    return failed("client", status, error);
  }
  status = tagsweep_lock_new(client, argv[2], strlen(argv[2]), 30000, &lock, error, sizeof error);
  if (status == TAGSWEEP_OK) {
    status = tagsweep_lock_acquire(lock, 0, &fence, error, sizeof error);
  }
  if (status != TAGSWEEP_OK) {
    code = failed("acquire", status, error);
  } else {
    printf("acquired, fence %llu\n", (unsigned long long)fence);
    /* ... work; before each step that must not happen twice: */
    if (tagsweep_lock_is_held(lock)) {
      printf("still held for %llu ms\n", (unsigned long long)tagsweep_lock_remaining_ms(lock));
    }
    status = tagsweep_lock_extend(lock, 60000, error, sizeof error);
    if (status != TAGSWEEP_OK) {
      code = failed("extend", status, error);
    }
    status = tagsweep_lock_release(lock, error, sizeof error);
    if (status != TAGSWEEP_OK) {
      code = failed("release", status, error);
    } else {
      printf("released\n");
    }
  }
  tagsweep_lock_free(lock);
  tagsweep_client_free(client);
  return code;
}
