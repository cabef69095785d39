<?php

declare(strict_types=1);

namespace Tagsweep\Bridge;

use Symfony\Component\Lock\BlockingStoreInterface;
use Symfony\Component\Lock\Exception\InvalidTtlException;
use Symfony\Component\Lock\Exception\LockConflictedException;
use Symfony\Component\Lock\Exception\LockStorageException;
use Symfony\Component\Lock\Key;
use Symfony\Component\Lock\Store\ExpiringStoreTrait;
use Tagsweep\DistributedLock;
use Tagsweep\Exception\ExceptionInterface;

/**
 * A store for symfony/lock: the application keeps its LockFactory, and acquire(true) waits in line
 * instead of asking ten times a second.
 *
 * The state of a Key is the owner of its lease, so a serialised Key works in another process. With
 * the option "renew" the lease is extended as long as the Key object lives.
 */
final class SymfonyLockStore implements BlockingStoreInterface
{
    use ExpiringStoreTrait;

    /** Longest time of one place in the line; then another is taken. */
    private const WAIT = 3600.0;

    /** @var \WeakMap<Key, DistributedLock> */
    private \WeakMap $locks;

    /** Where a Key keeps the owner: a CombinedStore has one Key for several stores. */
    private readonly string $state;

    /**
     * @param \Redis|string|array<string, mixed> $redis      as Tagsweep\DistributedLock takes it
     * @param float                              $initialTtl seconds; a Lock sets its own TTL right after
     * @param array<string, mixed>               $options    of Tagsweep\DistributedLock
     */
    public function __construct(
        #[\SensitiveParameter] private readonly \Redis|string|array $redis,
        private readonly float $initialTtl = 300.0,
        private readonly array $options = [],
    ) {
        if ($initialTtl <= 0) {
            throw new InvalidTtlException("the initial TTL must be greater than 0 seconds, not $initialTtl");
        }
        $this->locks = new \WeakMap();
        $this->state = self::class.':'.substr(hash('sha256', $this->target()), 0, 16);
    }

    /** Which server, database and prefix: the same in every process, and without secrets. */
    private function target(): string
    {
        $prefix = (string) ($this->options['prefix'] ?? '');
        if ($this->redis instanceof \Redis) {
            $prefix .= (string) $this->redis->getOption(\Redis::OPT_PREFIX);

            return implode(' ', [$this->redis->getHost(), $this->redis->getPort(), $this->redis->getDbNum(), $prefix]);
        }
        if (\is_string($this->redis)) {
            return preg_replace('~//[^/@]*@~', '//', $this->redis).' '.$prefix;
        }
        $open = array_diff_key($this->redis, ['password' => 1, 'user' => 1, 'auth' => 1]);

        return serialize(array_filter($open, 'is_scalar')).' '.$prefix;
    }

    public function save(Key $key): void
    {
        $this->take($key, 0.0);
    }

    public function waitAndSave(Key $key): void
    {
        $this->take($key, self::WAIT);
    }

    public function putOffExpiration(Key $key, float $ttl): void
    {
        if ($ttl < 0.001) {
            throw new InvalidTtlException("the TTL must be at least a millisecond, not $ttl s");
        }
        $key->reduceLifetime($ttl);
        if (!$this->of($key, static fn (DistributedLock $lock) => $lock->refresh($ttl))) {
            throw new LockConflictedException();
        }
        $this->checkNotExpired($key);
    }

    public function delete(Key $key): void
    {
        $this->of($key, static fn (DistributedLock $lock) => $lock->release());
        unset($this->locks[$key]);
        $key->removeState($this->state);
    }

    public function exists(Key $key): bool
    {
        return $this->of($key, static fn (DistributedLock $lock) => $lock->verify());
    }

    private function take(Key $key, float $wait): void
    {
        $key->reduceLifetime($this->initialTtl);
        // A Key that holds the lock keeps it; it may have lost it, too.
        if (!$this->of($key, fn (DistributedLock $lock) => $lock->refresh($this->initialTtl))) {
            $lock = new DistributedLock($this->redis, (string) $key, $this->initialTtl, ['autoRelease' => false] + $this->options);
            try {
                do {
                    $taken = $lock->acquireWithin($wait);
                } while (!$taken && $wait > 0);
            } catch (ExceptionInterface $e) {
                throw new LockStorageException($e->getMessage(), 0, $e);
            }
            if (!$taken) {
                throw new LockConflictedException();
            }
            $this->locks[$key] = $lock;
            $key->setState($this->state, $lock->owner());
            if ($wait > 0) {
                // Waiting does not count: the lease began when it was granted.
                $key->resetLifetime();
            }
            $key->reduceLifetime($lock->remaining() ?? 0.0);
        }
        $this->checkNotExpired($key);
    }

    /** @param callable(DistributedLock): bool $act */
    private function of(Key $key, callable $act): bool
    {
        if (!$key->hasState($this->state)) {
            return false;
        }
        try {
            $this->locks[$key] ??= DistributedLock::restore($this->redis, (string) $key, $key->getState($this->state), $this->options);

            return $act($this->locks[$key]);
        } catch (\Tagsweep\Exception\LockLostException) {
            return false;
        } catch (ExceptionInterface $e) {
            throw new LockStorageException($e->getMessage(), 0, $e);
        }
    }
}
