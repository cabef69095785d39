<?php

declare(strict_types=1);

namespace Tagsweep\Bridge;

use Illuminate\Cache\RedisStore;

/**
 * Laravel's own Redis store, with our locks behind Cache::lock(). In a service provider:
 *
 *     Cache::extend('tagsweep', fn ($app, $config) => Cache::repository(LaravelStore::make($app, $config)));
 *
 * The connection of the locks is one of phpredis.
 */
class LaravelStore extends RedisStore
{
    /** @var array<string, mixed> */
    private array $lockOptions = [];

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

        return $store->setLockConnection($config['lock_connection'] ?? $connection);
    }

    /** @param array<string, mixed> $options of Tagsweep\DistributedLock */
    public function setLockOptions(array $options): static
    {
        $this->lockOptions = $options;

        return $this;
    }

    public function lock($name, $seconds = 0, $owner = null): LaravelLock
    {
        return $this->locks()->lock($name, $seconds, $owner);
    }

    public function restoreLock($name, $owner): LaravelLock
    {
        return $this->locks()->restoreLock($name, $owner);
    }

    private function locks(): LaravelLockProvider
    {
        $connection = $this->lockConnection();
        $client = $connection->client();
        if (!$client instanceof \Redis) {
            throw new \LogicException('locks of Tagsweep need a connection of phpredis, not ' . get_debug_type($client));
        }

        return new LaravelLockProvider($client, $this->prefix, $this->lockOptions, connection: $connection->getName());
    }
}
