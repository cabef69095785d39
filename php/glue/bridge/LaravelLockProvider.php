<?php

declare(strict_types=1);

namespace Tagsweep\Bridge;

use Illuminate\Contracts\Cache\LockProvider;

/** What Laravel asks for locks: `$provider->lock('report', 30)->block(10, fn () => …)`. */
final class LaravelLockProvider implements LockProvider
{
    /** A day (s). */
    public const FOR_EVER = 86_400;

    private readonly Server $server;

    /**
     * @param \Redis|string|array<string, mixed>|Server $redis as Tagsweep\DistributedLock takes it
     * @param string                             $prefix  stands before every name
     * @param array<string, mixed>               $options of Tagsweep\DistributedLock
     * @param int|float                          $forEver TTL of a lock that is asked for with 0 seconds,
     *                                                    Laravel's "until released": a crash must not
     *                                                    block for ever
     * @param string|null                        $connection what Laravel calls the connection, if it does
     *
     * @throws \Tagsweep\Exception\InvalidArgumentException
     */
    public function __construct(
        #[\SensitiveParameter] \Redis|string|array|Server $redis,
        private readonly string $prefix = '',
        private readonly array $options = [],
        private readonly int|float $forEver = self::FOR_EVER,
        private readonly ?string $connection = null,
    ) {
        $this->server = ($redis instanceof Server ? $redis : new Server($redis))->check($options);
    }

    /**
     * @param string           $name
     * @param int|float|string $seconds a number; configurations hold strings
     * @param string|null      $owner   of a lease that was granted before; one of your own making is not taken
     */
    public function lock($name, $seconds = 0, #[\SensitiveParameter] $owner = null): LaravelLock
    {
        $owner = $owner === null ? null : (string) $owner;

        return new LaravelLock($this->server, $this->prefix . $name, $seconds + 0, $owner, $this->options, $this->forEver, $this->connection);
    }

    public function restoreLock($name, #[\SensitiveParameter] $owner): LaravelLock
    {
        return $this->lock($name, 0, $owner);
    }
}
