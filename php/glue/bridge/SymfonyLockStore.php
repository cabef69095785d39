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
 * A Key has the owners of its leases, so a serialised Key works in another process. With the option
 * "renew" the lease is extended as long as the Key object lives.
 */
final class SymfonyLockStore implements BlockingStoreInterface
{
    use ExpiringStoreTrait;

    /** Longest time of one place in the line; then another is taken. */
    private const WAIT = 3600.0;

    /** Shortest TTL of a lease. */
    private const LEAST = 0.003;

    /** @var \WeakMap<Key, DistributedLock> */
    private \WeakMap $locks;

    private readonly Server $server;

    /**
     * @param \Redis|string|array<string, mixed> $redis      as Tagsweep\DistributedLock takes it
     * @param float                              $initialTtl seconds; a Lock sets its own TTL right after
     * @param array<string, mixed>               $options    of Tagsweep\DistributedLock
     *
     * @throws \Tagsweep\Exception\InvalidArgumentException
     */
    public function __construct(
        #[\SensitiveParameter] \Redis|string|array $redis,
        private readonly float $initialTtl = 300.0,
        private readonly array $options = [],
    ) {
        if ($initialTtl <= 0) {
            throw new InvalidTtlException("the initial TTL must be greater than 0 seconds, not $initialTtl");
        }
        $this->locks = new \WeakMap();
        $this->server = (new Server($redis))->check($options);
    }

    /** @return array<string, string> by target: a CombinedStore has one Key for several stores */
    private function owners(Key $key): array
    {
        return $key->hasState(self::class) ? $key->getState(self::class) : [];
    }

    /** One that is alone is tried, too: another process may call our server otherwise, and the server compares. */
    private function owner(Key $key): ?string
    {
        $owners = $this->owners($key);

        return \count($owners) === 1 ? reset($owners) : $owners[$this->target()] ?? null;
    }

    /** Which server, database and prefix, without secrets; a socket and a port of one server are two. */
    private function target(): string
    {
        $prefix = (string) ($this->options['prefix'] ?? '');
        $redis = $this->server->target();
        if ($redis instanceof \Redis) {
            $host = preg_replace('~^\w+://~', '', (string) $redis->getHost());
            $told = ['host' => $host, 'port' => $redis->getPort(), 'database' => $redis->getDbNum()];
            $told = str_starts_with($host, '/') ? ['path' => $host] + $told : $told;
            $prefix .= (string) $redis->getOption(\Redis::OPT_PREFIX);
        } else {
            $told = \is_string($redis) ? ['url' => $redis] : $redis;
            $told += isset($told['url']) ? self::parts((string) $told['url']) : [];
            $prefix .= (string) ($told['prefix'] ?? '');
        }
        $tcp = strtolower((string) ($told['host'] ?? '127.0.0.1')).' '.(int) ($told['port'] ?? 6379);

        return substr(hash('sha256', ($told['path'] ?? $tcp).' '.(int) ($told['database'] ?? 0).' '.$prefix), 0, 16);
    }

    /** @return array<string, mixed> what a DSN tells of the place */
    private static function parts(string $dsn): array
    {
        // A path where a host would be is no URL to parse_url().
        $parts = parse_url(preg_replace('~^unix://~', 'file://', $dsn)) ?: [];
        parse_str($parts['query'] ?? '', $query);
        if (($parts['scheme'] ?? '') === 'file') {
            return ['path' => rawurldecode($parts['path'] ?? ''), 'database' => $query['db'] ?? null];
        }

        return ['host' => trim($parts['host'] ?? '127.0.0.1', '[]'), 'port' => $parts['port'] ?? null, 'database' => $query['db'] ?? trim($parts['path'] ?? '', '/')];
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
        if ($ttl <= 0) {
            throw new InvalidTtlException("the TTL must be greater than 0 seconds, not $ttl");
        }
        $key->reduceLifetime($ttl);
        $least = max($ttl, self::LEAST);
        if (!$this->of($key, static fn (DistributedLock $lock) => $lock->refresh($least))) {
            throw new LockConflictedException();
        }
        $this->checkNotExpired($key);
    }

    public function delete(Key $key): void
    {
        $owners = $this->owners($key);
        try {
            $released = $this->of($key, static fn (DistributedLock $lock) => $lock->release());
        } finally {
            // One that failed is tried again by its owner.
            unset($this->locks[$key]);
        }
        // Another store's owner stays.
        $gone = $released ? $this->owner($key) : $owners[$this->target()] ?? null;
        $key->setState(self::class, array_diff($owners, [$gone]));
    }

    public function exists(Key $key): bool
    {
        return $this->of($key, function (DistributedLock $lock) use ($key) {
            $held = $lock->verify();
            if ($held && ($this->options['renew'] ?? false) && \count($this->owners($key)) === 1) {
                // The Key does not hear of renewals. One of several stores lives as long as the first of them.
                $key->resetLifetime();
                $key->reduceLifetime($lock->remaining() ?? 0.0);
            }

            return $held;
        });
    }

    private function take(Key $key, float $wait): void
    {
        $key->reduceLifetime($this->initialTtl);
        // A Key that holds the lock keeps it; it may have lost it, too.
        if (!$this->of($key, fn (DistributedLock $lock) => $lock->refresh($this->initialTtl))) {
            try {
                $lock = new DistributedLock($this->server->target(), (string) $key, $this->initialTtl, ['autoRelease' => false] + $this->options);
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
            $key->setState(self::class, [$this->target() => $lock->owner()] + $this->owners($key));
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
        $owner = $this->owner($key);
        if ($owner === null) {
            return false;
        }
        try {
            $this->locks[$key] ??= DistributedLock::restore($this->server->target(), (string) $key, $owner, $this->options);

            return $act($this->locks[$key]);
        } catch (\Tagsweep\Exception\LockLostException) {
            return false;
        } catch (ExceptionInterface $e) {
            throw new LockStorageException($e->getMessage(), 0, $e);
        }
    }
}
