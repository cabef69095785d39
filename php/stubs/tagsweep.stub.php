<?php

/**
 * The manual of the tagsweep extension: what it has, for people and for IDEs. A test compares this
 * file with the built extension.
 *
 * Spans are seconds, as int or float. Contention is an outcome (false), never an exception; every
 * exception implements Tagsweep\Exception\ExceptionInterface, and no text of one holds a secret.
 *
 * The first argument of the constructors is one of
 * - a connected \Redis: host, port or socket, password, database, OPT_PREFIX and timeouts are taken
 *   over, as they are at that moment, and the database asked for; the native connection is one of its
 *   own, and seen to lead to the same server;
 * - a DSN: redis://[user:password@]host[:port][/db], rediss://… for TLS, unix:///path[?db=N], or the
 *   path of a socket;
 * - an array of url, host, port, path, user, password, database, prefix, timeout, connect_timeout,
 *   busy_poll, tls, tls_ca, tls_cert, tls_key (the last three are PEM files).
 *
 * Where answers come within busy_poll (s; 0.00005, or 0 where there is one processor), the process waits for them
 * awake: of a server next door a virtual machine has them in half the time. One that is farther away is waited for
 * asleep, as is one's turn in line, and what a sweep asks.
 *
 * With tagsweep.alias_namespace = "Some\Namespace" in php.ini, DistributedLock and TagCleanupManager
 * are known under that namespace, too.
 */

namespace Tagsweep {
    interface LockInterface
    {
        /** Takes the lock if it is free. */
        public function acquire(): bool;

        /** Gives the lock up. */
        public function release(): bool;

        /** Gives the lease more time. */
        public function extend(?int $ttl = null): bool;

        /** Whether the lease may still be acted upon. */
        public function isAcquired(): bool;
    }

    /**
     * A distributed lock. One object is one contender; destroying it releases its lease, within a
     * second. A forked child's copy holds nothing and releases nothing.
     *
     * A lease is given back however PHP ends: at the end of the script, by exit, an uncaught exception, a
     * fatal error, or by TERM, INT or HUP as long as the script handles none of them itself.
     *
     * Waiters stand in line: the lock is handed to whoever has waited longest, at once.
     *
     * With the option "renew" a thread of this process extends the lease every third of its TTL, while
     * PHP computes, sleeps or waits. When the lease is lost all the same, isAcquired() is false and the next
     * operation throws LockLostException.
     */
    class DistributedLock implements LockInterface
    {
        /**
         * Speaks to the server only to see where a \Redis object leads.
         *
         * @param \Redis|string|array<string, mixed> $redis   see above
         * @param string                             $lockKey any bytes; the key is "lock:$lockKey"
         * @param int|float                          $ttl     seconds, greater than 0
         * @param array<string, mixed>               $options prefix; timeout (s): longest time of one call; busyPoll (s);
         * wait (s): how long acquire() waits in line; waitMode: "line", or
         * "backoff" for proxies without blocking commands; ttl: instead of
         * $ttl, "auto" to learn it from past durations; renew (bool);
         * maxHold (s): no lease is extended beyond it; atLeast (s): the lock
         * stays taken so long, even if released earlier; autoRelease (true):
         * whether destroying the object releases; confirm (0): so many
         * replicas must have the grant
         *
         * @throws Exception\InvalidArgumentException
         * @throws Exception\ConnectionException when a \Redis object is not connected or not to be copied
         */
        public function __construct(#[\SensitiveParameter] \Redis|string|array $redis, string $lockKey, int|float $ttl = 60, array $options = [])
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * A lock whose lease was granted to whoever gave us its owner(): another process, or an earlier
         * request. Sends nothing; isAcquired() is false until verify() or extend() has asked. Its release
         * takes one round trip more, to learn since when it was held. The options are the constructor's and
         * ttl (60); autoRelease is false unless it is given.
         *
         * @param \Redis|string|array<string, mixed> $redis   see above
         * @param array<string, mixed>               $options
         *
         * @throws Exception\InvalidArgumentException
         * @throws Exception\ConnectionException when a \Redis object is not connected or not to be copied
         */
        public static function restore(#[\SensitiveParameter] \Redis|string|array $redis, string $lockKey, #[\SensitiveParameter] string $owner, array $options = []): static
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Takes the lock if it is free; at once, or within the option "wait". One round trip when it is
         * free. False while anybody holds it, this object included.
         *
         * @throws Exception\ConnectionException|Exception\ServerException
         * @throws Exception\UnknownOutcomeException when no answer came: it may be taken, for one TTL; the
         *                                           next acquire() of this object takes it over, release() or
         *                                           its end gives it up
         * @throws Exception\LockLostException       with "renew", when the lease was lost; once
         * @throws Exception\ReentrantLockException with a wait, when this process itself holds it
         */
        public function acquire(): bool
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Takes the lock, waiting in line for at most $seconds. False when the time is up. PHP's signal
         * handlers run while it waits; one that throws ends the wait.
         *
         * @throws Exception\ExceptionInterface as acquire()
         */
        public function acquireWithin(float $seconds): bool
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /** Alias of acquireWithin(). */
        public function block(float $seconds): bool
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Takes the lock as acquire() does. With a callback: runs it, gives the lock up and answers what it
         * returned; false when the lock was not to be had.
         *
         * @template T
         *
         * @param null|callable(): T $callback
         *
         * @return ($callback is null ? bool : T|false)
         *
         * @throws Exception\ExceptionInterface as synchronized()
         */
        public function get(?callable $callback = null): mixed
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Runs the body under the lock and answers what it returned. The lock is given up however the body
         * ends.
         *
         * @template T
         *
         * @param callable(): T $body
         * @param float         $wait seconds to wait in line
         *
         * @return T
         *
         * @throws Exception\LockConflictedException when the lock was not to be had
         * @throws Exception\LockLostException       when it was not ours any more after the body, or before it
         * @throws Exception\ReentrantLockException  when this object holds it already
         */
        public function synchronized(callable $body, float $wait = 0): mixed
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Gives the lock up, to whoever has waited longest. One round trip; two after an acquire() of which
         * nobody knows what it came to. False when it was not ours (any more).
         *
         * @throws Exception\LockLostException  with "renew", when it was lost; once
         * @throws Exception\ExceptionInterface the lease then ends with its TTL
         */
        public function release(): bool
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Gives the lease $ttl seconds from now; null: its usual TTL, never less than what is left.
         * One round trip. False when the lease is lost, or held for maxHold; a lost lock is never taken
         * again by this.
         *
         * @throws Exception\LockLostException with "renew", when it was lost; once
         * @throws Exception\ExceptionInterface
         */
        public function extend(?int $ttl = null): bool
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * The same as extend(), with fractions of seconds.
         *
         * @throws Exception\ExceptionInterface
         */
        public function refresh(?float $ttl = null): bool
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Asks the server whether the lease is still ours. One round trip.
         *
         * @throws Exception\LockLostException with "renew", when it was lost; once
         * @throws Exception\ExceptionInterface
         */
        public function verify(): bool
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /** Whether the lease may still be acted upon, by this machine's clock; no round trip. */
        public function isAcquired(): bool
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Whether there is a lease, but it must not be acted upon: any more, or, of a restored one, before it was
         * asked for. No round trip.
         */
        public function isExpired(): bool
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /** Seconds until the holder must stop, 0.0 once the lease is lost; null without a lease. No round trip. */
        public function remaining(): ?float
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /** Alias of remaining(). */
        public function getRemainingLifetime(): ?float
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /** Fencing token of the lease, larger than that of every grant before; null without a lease. */
        public function fence(): ?int
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /** The value of the lock key, which proves ownership: keep it secret. Null without a lease. */
        public function owner(): ?string
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Whether anybody holds the lock. One round trip.
         *
         * @throws Exception\ExceptionInterface
         */
        public function isLocked(): bool
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Whether the lock is held with that owner; null: whether nobody holds it. One round trip.
         *
         * @throws Exception\ExceptionInterface
         */
        public function isOwnedBy(#[\SensitiveParameter] ?string $owner = null): bool
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /** Alias of verify(). */
        public function isOwnedByCurrentProcess(): bool
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Takes the lock away from whoever holds it, for operators. False when it was free.
         *
         * @throws Exception\ExceptionInterface
         */
        public function forceRelease(): bool
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Who holds the lock; null when nobody does. One round trip.
         *
         * @return null|array{fence: ?int, host: ?string, pid: ?int, program: ?string, ttl: ?float, since: ?float}
         * fence 0: being handed over; null: a program that is not tagsweep
         *
         * @throws Exception\ExceptionInterface
         */
        public function getHolder(): ?array
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * What happened around this lock, in all processes, since it was first used or last lay unused for 30 days. One
         * round trip.
         *
         * @return array{acquired: int, held: int, timeouts: int, unknown: int, errors: int, takeovers: int, renewed: int,
         * renewFailed: int, lost: array<string, int>, ttl: float, wait: array{count: int, sum: float, p50: ?float,
         * p99: ?float, p999: ?float}, hold: array{count: int, sum: float, p50: ?float, p99: ?float, p999: ?float},
         * renewGap: array{count: int, sum: float, p50: ?float, p99: ?float, p999: ?float}}
         * spans in seconds; a quantile is at most a fifth more than it was
         *
         * @throws Exception\ExceptionInterface
         */
        public function stats(): array
        {
            throw new \Error('the extension tagsweep is not loaded');
        }
    }

    /**
     * Removes stale references and orphaned tags of the layout "plain" (a set "tag:<tag>" whose members
     * name entries), under the lock "cache_tag_cleanup".
     */
    class TagCleanupManager
    {
        /**
         * Speaks to the server only to see where a \Redis object leads.
         *
         * @param \Redis|string|array<string, mixed> $redis     see above
         * @param int                                $maxTagAge seconds, 1 to 180 days: the entries of tags
         *                                                      not used for so long are invalidated
         * @param array<string, mixed>               $options   prefix, timeout, layout ("plain"),
         *                                                      entryPrefix, trustMapping, grace (5),
         *                                                      verify (1), onAged ("invalidate" or "keep"),
         *                                                      maxShare (1), maxRemovals, maxDuration,
         *                                                      maxLatency (0.0005: how much longer others
         *                                                      may have to wait for the server), effort
         *                                                      (10: tenths of the server's time), memory
         *                                                      (bytes), strict (delete entries whose
         *                                                      reference had to be put back), durable (note
         *                                                      on the server what is removed until it is
         *                                                      verified), remember (seconds, at most: pass
         *                                                      over tags in which nothing can have become
         *                                                      stale since), resume (true: begin where an
         *                                                      earlier cleanup was cut short), lock,
         *                                                      lockTtl (30), wait (0), dryRun
         *
         * @throws Exception\InvalidArgumentException
         * @throws Exception\ConnectionException when a \Redis object is not connected or not to be copied
         */
        public function __construct(#[\SensitiveParameter] \Redis|string|array $redis, int $maxTagAge = 604800, array $options = [])
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Sweeps; answers the number of tags removed. PHP's signal handlers run meanwhile; one that
         * throws or exits ends the sweep first. A signal that ends PHP does so with the lock released.
         *
         * @throws Exception\LockConflictedException "Unable to acquire lock for cache tag cleanup."
         * @throws Exception\LockLostException        nothing was removed after the loss
         * @throws Exception\UnprovenMappingException no reference leads to an existing entry
         * @throws Exception\ExceptionInterface
         */
        public function cleanup(): int
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * What cleanup() would do; writes nothing and takes no lock.
         *
         * @throws Exception\ExceptionInterface
         */
        public function plan(): SweepReport
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /** Figures of the last run, also of one that threw; null before the first, and of one that did not begin. */
        public function lastReport(): ?SweepReport
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Has $listener(SweepReport $report, float $share, ?float $left, float $effort, float $rate) called about
         * ten times a second, with the share that is done, below 1 while anything is left to do, the seconds left, as
         * far as they can be told, how much of the server's time is taken at most now, in tenths, and how many
         * references are looked at in a second; its false is stop(). What it throws ends the sweep and goes on to the
         * caller. It must not suspend the Fiber that it runs in: signals that end the process wait for its return. One
         * that holds the manager keeps it alive until onProgress(null).
         *
         * @param null|callable(SweepReport, float, ?float, float, float): mixed $listener
         *
         * @return static
         */
        public function onProgress(?callable $listener = null): TagCleanupManager
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Tells a PSR-3 logger, or any object with its log(), how cleanups end: info when complete,
         * notice when complete with warnings, stopped by the application, or not begun because another held the lock,
         * warning when its lock was lost or a limit cut it short, error when it failed; the context is the report, of one
         * that did not begin with the `reason` "held" or "error". What the logger throws goes on to the caller.
         *
         * @param \Psr\Log\LoggerInterface|null $logger
         *
         * @return static
         */
        public function setLogger(?object $logger = null): TagCleanupManager
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * Ends a running cleanup() soon, from a listener or a signal handler: what was removed is
         * verified, the lock released, the count so far returned. While it waits for its lock it ends with
         * LockConflictedException.
         */
        public function stop(): void
        {
            throw new \Error('the extension tagsweep is not loaded');
        }
    }

    /** Figures of a sweep; of a plan, of what would be done. Read-only. (A double declares them without types.) */
    class SweepReport implements \JsonSerializable
    {
        /** Tags read. */
        public int $tagsSeen;
        /** Tags that are gone because their last reference was removed. */
        public int $tagsRemoved;
        /** Tags that lost some references and live on. */
        public int $tagsPruned;
        /** Tags not used for $maxTagAge. */
        public int $tagsAged;
        /** Keys under the pattern that hold another type; never touched. */
        public int $tagsSkipped;
        /** Tags passed over because nothing in them can have become stale since an earlier sweep. */
        public int $tagsUnchanged;
        /** References whose entry was looked for. */
        public int $referencesChecked;
        /** References removed. */
        public int $referencesRemoved;
        /** References to absent entries that were left alone, for their tag was in use. */
        public int $referencesSkipped;
        /** References put back because their entry appeared after all. */
        public int $referencesRestored;
        /** Scores corrected. */
        public int $scoresHealed;
        /** Entries deleted because their tag was aged, or, in a strict cleanup, restored. */
        public int $entriesInvalidated;
        /** Memory given back, estimated from samples (bytes). */
        public int $bytesReclaimed;
        /** Pages of the walk over the keys. */
        public int $pages;
        /** Duration (s). */
        public float $duration;
        /** Time that the server worked for us (s). */
        public float $server;
        /** Rounds of commands; each kept the server from others for a moment. */
        public int $rounds;
        /** How long: the median (s). */
        public float $roundP50;
        /** And of the slowest hundredth (s). */
        public float $roundP99;
        /** Share of the keys before the place at which an earlier cleanup was cut short and this one began; else 0. */
        public float $resumedAt;
        /** References that had been removed by then, since a cleanup was complete. */
        public int $removedBefore;
        /** Whether every tag was seen and judged. */
        public bool $complete;
        /** complete, lost, stopped, max_duration, max_removals, max_share or error; running in progress. */
        public string $reason;
        /** Nothing was written. */
        public bool $dryRun;
        /** What makes a member the key of its entry, as proven; null if nothing was proven. */
        public ?string $entryPrefix;
        /** @var list<string> what an operator should know */
        public array $warnings;
        /** @var list<array{tag: string, entry: string, why: string}> of a plan: some of what would go */
        public array $samples;

        /** Made by TagCleanupManager only. */
        public function __construct()
        {
            throw new \Error('the extension tagsweep is not loaded');
        }

        /**
         * The figures under the names of the JSON report.
         *
         * @return array<string, mixed>
         */
        public function jsonSerialize(): array
        {
            throw new \Error('the extension tagsweep is not loaded');
        }
    }
}

namespace Tagsweep\Exception {
    interface ExceptionInterface extends \Throwable
    {
    }

    /** An argument is out of bounds; nothing was sent. */
    class InvalidArgumentException extends \InvalidArgumentException implements ExceptionInterface
    {
    }

    /** No connection, or the server refused user, password or permission. (phpredis throws \RedisException there.) */
    class ConnectionException extends \RuntimeException implements ExceptionInterface
    {
    }

    /** No answer came in time: the command may or may not have taken effect. */
    class UnknownOutcomeException extends \RuntimeException implements ExceptionInterface
    {
    }

    /** The server answered with an error. */
    class ServerException extends \RuntimeException implements ExceptionInterface
    {
    }

    /** Another process holds the lock. */
    class LockConflictedException extends \RuntimeException implements ExceptionInterface
    {
    }

    /** The lock was lost while it was needed. */
    class LockLostException extends \RuntimeException implements ExceptionInterface
    {
    }

    /** No reference leads to an existing entry, or two mappings do; nothing was removed. */
    class UnprovenMappingException extends \RuntimeException implements ExceptionInterface
    {
    }

    /** The caller waits for a lock that this process itself holds, or calls an object in the middle of its work. */
    class ReentrantLockException extends \LogicException implements ExceptionInterface
    {
    }
}
