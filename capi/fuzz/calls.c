/* Calls in any order, with any arguments that the header allows, as libFuzzer makes them up.
 *
 * Build: clang -g -fsanitize=fuzzer,address -Iinclude capi/fuzz/calls.c -ltagsweep
 * Run:   TAGSWEEP_FUZZ_URL=unix:///path/of/a/private/server ./a.out -max_total_time=60
 *
 * Every byte string that the library reads or writes is in memory of exactly that size, so that the
 * address sanitizer sees a byte too many.
 */
#include "tagsweep.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLIENTS 2
#define LOCKS 4

static const uint8_t *input;
static size_t left;

static uint8_t byte(void) {
  if (left == 0) return 0;
  left--;
  return *input++;
}

/* A copy of the next few bytes; NULL at times, where the length is 0. */
static char *bytes(size_t *length) {
  size_t n = byte() % 24;
  *length = n < left ? n : left;
  if (*length == 0 && byte() % 2) return NULL;
  char *copy = malloc(*length ? *length : 1);
  memcpy(copy, input, *length);
  input += *length;
  left -= *length;
  return copy;
}

/* Times that a test can wait for, and some that are out of bounds. */
static uint64_t milliseconds(void) {
  uint8_t n = byte();
  if (n == 255) return UINT64_MAX;
  if (n == 254) return 0;
  return n % 50 + 1;
}

static bool soon_over(void *context) { return ++*(int *)context < 3; }

static void on_lost(void *context, const char *reason) {
  if (reason == NULL || strlen(reason) > 1000 || context != NULL) abort();
}

static int32_t soon_stopped(void *context, const tagsweep_report *report, double share) {
  if (report == NULL || !(share >= 0 && share <= 1)) abort();
  return ++*(int *)context > 2;
}

/* An error text must be a text, and an empty one only after success. */
static void check(int32_t status, const char *error, size_t size) {
  if (tagsweep_status_text(status) == NULL) abort();
  if (status == TAGSWEEP_ERR_PANIC) {
    fprintf(stderr, "a panic: %s\n", size ? error : "");
    abort();
  }
  if (size > 0 && memchr(error, 0, size) == NULL) abort();
}

static void lock_options(tagsweep_lock_options *options) {
  tagsweep_lock_options_init(options);
  options->ttl_ms = milliseconds() + 20;
  options->renew = byte() % 2;
  options->backoff = byte() % 2;
  options->release_on_free = byte() % 2;
  options->record = byte() % 2;
  if (byte() % 4 == 0) options->max_hold_ms = milliseconds();
  if (byte() % 4 == 0) options->at_least_ms = milliseconds();
  if (byte() % 16 == 0) options->confirm = byte() % 3;
  if (byte() % 8 == 0) options->size = byte();
}

static void on_sample(void *context, const char *tag, const char *entry, const char *why) {
  if (tag == NULL || entry == NULL || why == NULL || ++*(int *)context > 20) abort();
}

static void sweep_options(tagsweep_options *options, const char *name, size_t length) {
  tagsweep_options_init(options);
  options->trust_mapping = byte() % 2;
  options->dry_run = byte() % 2;
  options->grace_ms = milliseconds() % 3;
  options->verify_ms = milliseconds() % 3;
  options->max_share = byte() / 128.0;
  options->effort = byte() % 12;
  options->strict = byte() % 2;
  options->durable = byte() % 2;
  options->max_duration_ms = 200;
  options->resume = byte() % 2;
  if (byte() % 4 == 0) options->max_removals = byte();
  if (byte() % 4 == 0) options->invalidate_aged = byte() % 2;
  if (byte() % 4 == 0) options->max_tag_age_ms = byte() % 2 ? 1000u * (byte() + 1) : milliseconds();
  if (byte() % 4 == 0) options->max_latency_us = byte() % 2 ? 50u * (byte() + 1) : milliseconds();
  if (byte() % 4 == 0) options->memory = (size_t)byte() << 18;
  if (byte() % 4 == 0) options->remember_ms = byte() % 2 ? 1000u * (byte() + 1) : milliseconds();
  if (byte() % 4 == 0) options->lock_ttl_ms = byte() % 2 ? 1000u * (byte() + 1) : milliseconds();
  if (byte() % 4 == 0) options->wait_ms = byte() % 30;
  if (byte() % 2) options->entry_prefix = name, options->entry_prefix_len = length;
  if (byte() % 2) options->lock = name, options->lock_len = length;
  if (byte() % 8 == 0) options->size = byte();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  tagsweep_client *clients[CLIENTS] = {NULL};
  tagsweep_lock *locks[LOCKS] = {NULL};
  const char *url = getenv("TAGSWEEP_FUZZ_URL");
  int context = 0;
  if (url == NULL) {
    fprintf(stderr, "TAGSWEEP_FUZZ_URL names no server\n");
    abort();
  }
  /* So that even short inputs come to the server. */
  tagsweep_client_new(url, strlen(url), NULL, 0, 1000, &clients[0], NULL, 0);
  tagsweep_lock_new(clients[0], "job", 3, 100, &locks[0], NULL, 0);
  input = data;
  left = size;
  for (int calls = 0; left > 0 && calls < 40; calls++) {
    uint8_t what = byte();
    tagsweep_client **client = &clients[byte() % CLIENTS];
    tagsweep_lock **lock = &locks[byte() % LOCKS];
    size_t length, room = byte() % 70;
    char *name = bytes(&length), *error = room ? malloc(room) : NULL;
    int32_t status = TAGSWEEP_OK;
    uint64_t fence = 0;
    if (error) memset(error, 0, room);
    context = 0;
    switch (what % 16) {
      case 0:
        tagsweep_client_free(*client), *client = NULL;
        status = tagsweep_client_new(name, length, NULL, 0, 0, client, error, room);
        break;
      case 1:
      case 2:
        tagsweep_client_free(*client), *client = NULL;
        status = tagsweep_client_new(url, strlen(url), name, length, 1000, client, error, room);
        break;
      case 3:
        tagsweep_lock_free(*lock), *lock = NULL;
        status = tagsweep_lock_new(*client, name, length, milliseconds(), lock, error, room);
        break;
      case 4:
      case 5: {
        tagsweep_lock_options options;
        lock_options(&options);
        tagsweep_lock_free(*lock), *lock = NULL;
        status = tagsweep_lock_new_with(*client, name, length, &options, lock, error, room);
        break;
      }
      case 6: {
        tagsweep_lock_options options;
        lock_options(&options);
        tagsweep_lock_free(*lock), *lock = NULL;
        status = tagsweep_lock_restore(*client, "job", 3, name, length, &options, lock, error, room);
        break;
      }
      case 7:
        status = tagsweep_lock_acquire(*lock, byte() % 30, byte() % 2 ? &fence : NULL, error, room);
        break;
      case 8:
        status = tagsweep_lock_acquire_while(*lock, byte() % 30, soon_over, &context, NULL, error, room);
        break;
      case 9:
        status = tagsweep_lock_extend(*lock, milliseconds(), error, room);
        break;
      case 10:
        status = tagsweep_lock_release(*lock, error, room);
        break;
      case 11:
        status = tagsweep_lock_verify(*lock, error, room);
        break;
      case 12: {
        char *owner = room ? malloc(room) : NULL;
        (void)tagsweep_lock_owner(*lock, owner, room);
        (void)tagsweep_lock_fence(*lock);
        (void)tagsweep_lock_remaining_ms(*lock);
        if (*lock == NULL && tagsweep_lock_is_held(*lock)) abort();
        free(owner);
        break;
      }
      case 13:
        tagsweep_lock_on_lost(*lock, byte() % 2 ? on_lost : NULL, NULL);
        break;
      case 14: {
        tagsweep_holder holder;
        status = tagsweep_lock_status(*client, name, length, byte() % 2 ? &holder : NULL, error, room);
        if (byte() % 2) status = tagsweep_force_release(*client, name, length, byte(), error, room);
        break;
      }
      default: {
        tagsweep_options options;
        tagsweep_report report;
        sweep_options(&options, name, length);
        if (byte() % 4 == 0) {
          status = tagsweep_plan(*client, byte() % 4 ? &options : NULL, byte() % 2 ? on_sample : NULL,
                                 &context, byte() % 2 ? &report : NULL, error, room);
          break;
        }
        status = tagsweep_sweep(*client, byte() % 4 ? &options : NULL,
                                byte() % 2 ? soon_stopped : NULL, &context,
                                byte() % 2 ? &report : NULL, error, room);
        break;
      }
    }
    check(status, error, room);
    free(name);
    free(error);
  }
  for (int i = 0; i < CLIENTS; i++) tagsweep_client_free(clients[i]);
  for (int i = 0; i < LOCKS; i++) tagsweep_lock_free(locks[i]);
  return 0;
}
