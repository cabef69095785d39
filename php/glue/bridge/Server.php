<?php

declare(strict_types=1);

namespace Tagsweep\Bridge;

use Tagsweep\DistributedLock;

/** A server, as Tagsweep\DistributedLock takes it. What it holds may be a password: no dump of it shows that. */
final class Server
{
    /** @var \WeakMap<self, \Redis|string|array<string, mixed>> */
    private static \WeakMap $known;

    /** @param \Redis|string|array<string, mixed> $redis */
    public function __construct(#[\SensitiveParameter] \Redis|string|array $redis)
    {
        self::$known ??= new \WeakMap();
        self::$known[$this] = $redis;
    }

    /** @return \Redis|string|array<string, mixed> */
    public function target(): \Redis|string|array
    {
        return self::$known[$this];
    }

    /**
     * Wrong options or a wrong DSN are told of where they are given, not at the first lock. Speaks to nobody.
     *
     * @param array<string, mixed> $options of Tagsweep\DistributedLock
     *
     * @throws \Tagsweep\Exception\InvalidArgumentException
     */
    public function check(array $options): self
    {
        $redis = $this->target();
        new DistributedLock($redis instanceof \Redis ? '/nowhere' : $redis, 'nobody', 366 * 86_400, $options);

        return $this;
    }

    private function __clone()
    {
    }

    /** @return never */
    public function __serialize(): array
    {
        throw new \LogicException('a server cannot be serialized: its credentials are stored nowhere. Hand on the owner of a lock instead.');
    }
}
