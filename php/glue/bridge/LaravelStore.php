<?php

declare(strict_types=1);

namespace Tagsweep\Bridge;

use Illuminate\Cache\RedisStore;

/**
 * Laravel's own Redis store, with our locks behind Cache::lock(). In a service provider:
 *
 *     Cache::extend('tagsweep', fn ($app, $config) => Cache::repository(LaravelStore::make($app, $config), $config));
 *
 * The connection of the locks is one of phpredis, or what "lock_server" says: a DSN, or an array as
 * Tagsweep\DistributedLock takes it. "lock_for_ever" is the TTL of a lock that is asked for with 0 seconds (a unique
 * job, WithoutOverlapping), a day if it is not given; "lock_options" are those of Tagsweep\DistributedLock.
 */
class LaravelStore extends RedisStore
{
    /** @var array<string, mixed> */
    private array $lockOptions = [];

    private ?Server $lockServer = null;

    private int|float $forEver = LaravelLockProvider::FOR_EVER;

    /**
     * With the prefix and the connections that Laravel's own store would have.
     *
     * @param \ArrayAccess<string, mixed> $app    the application
     * @param array<string, mixed>        $config of the store, in config/cache.php
     */
    public static function make(\ArrayAccess $app, array $config): static
    {
        $connection = $config['connection'] ?? 'default';
        $store = new static($app['redis'], $config['prefix'] ?? $app['config']['cache.prefix'], $connection);

        return $store->setLockConnection($config['lock_connection'] ?? $connection)
            // Configurations hold strings.
            ->setLockServer(($config['lock_server'] ?? '') ?: null)
            ->setForEver((($config['lock_for_ever'] ?? '') ?: LaravelLockProvider::FOR_EVER) + 0)
            ->setLockOptions($config['lock_options'] ?? []);
    }

    /** @param string|array<string, mixed>|null $server of the locks; null: that of Laravel's connection */
    public function setLockServer(#[\SensitiveParameter] string|array|null $server): static
    {
        $this->lockServer = $server === null ? null : new Server($server);

        return $this;
    }

    /** @param int|float $seconds TTL of a lock that is asked for with 0 seconds, Laravel's "until released" */
    public function setForEver(int|float $seconds): static
    {
        $this->forEver = $seconds;

        return $this;
    }

    /** @param array<string, mixed> $options of Tagsweep\DistributedLock */
    public function setLockOptions(array $options): static
    {
        $this->lockOptions = $options;

        return $this;
    }

    public function lock($name, $seconds = 0, #[\SensitiveParameter] $owner = null): LaravelLock
    {
        return $this->locks()->lock($name, $seconds, $owner);
    }

    public function restoreLock($name, #[\SensitiveParameter] $owner): LaravelLock
    {
        return $this->locks()->restoreLock($name, $owner);
    }

    private function locks(): LaravelLockProvider
    {
        if ($this->lockServer !== null) {
            return new LaravelLockProvider($this->lockServer, $this->prefix, $this->lockOptions, $this->forEver);
        }
        $connection = $this->lockConnection();
        $client = $connection->client();
        if (!$client instanceof \Redis) {
            throw new \LogicException('locks of Tagsweep need a connection of phpredis, not ' . get_debug_type($client) . '; name one, or a "lock_server"');
        }

        return new LaravelLockProvider($client, $this->prefix, $this->lockOptions, $this->forEver, $connection->getName());
    }
}
