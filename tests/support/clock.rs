//! A server's clock that can be set: what no real server can be told to do, and what happens to real ones.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Reads how far off the clock is to be (s) from a file, each time that it is asked for.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long off(void) {
  static int file = -1;
  long seconds = 0;
  if (file < 0) file = open(getenv("TAGSWEEP_CLOCK"), O_RDONLY);
  return pread(file, &seconds, sizeof seconds, 0) == sizeof seconds ? seconds : 0;
}
int clock_gettime(clockid_t clock, struct timespec *time) {
  int failed = syscall(SYS_clock_gettime, clock, time);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += off();
  return failed;
}
int gettimeofday(struct timeval *time, void *zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  time->tv_sec = now.tv_sec, time->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *told) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (told) *told = now.tv_sec;
  return now.tv_sec;
}
"#;

/// The clock of a server that was started with [`Clock::environment`].
pub struct Clock {
    file: PathBuf,
    library: PathBuf,
}

impl Clock {
    /// Built into that folder.
    pub fn build(folder: &Path) -> Self {
        let (source, file) = (folder.join("clock.c"), folder.join("clock"));
        let library = folder.join("clock.so");
        std::fs::write(&source, SHIM).unwrap();
        let clock = Self { file, library };
        clock.set(0);
        let mut build = Command::new("cc");
        build.args(["-shared", "-fPIC", "-O1", "-o"]).args([&clock.library, &source]);
        assert!(build.status().expect("cc").success());
        clock
    }

    /// From now on it is so many seconds off.
    pub fn set(&self, seconds: i64) {
        std::fs::write(&self.file, seconds.to_ne_bytes()).unwrap();
    }

    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        vec![("LD_PRELOAD", self.library.clone()), ("TAGSWEEP_CLOCK", self.file.clone())]
    }
}
