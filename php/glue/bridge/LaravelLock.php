<?php

declare(strict_types=1);

namespace Tagsweep\Bridge;

use Illuminate\Cache\Lock;
use Illuminate\Contracts\Cache\LockTimeoutException;
use Tagsweep\DistributedLock;
use Tagsweep\Exception\ExceptionInterface;
use Tagsweep\Exception\LockLostException;
use Tagsweep\Exception\ReentrantLockException;

/**
 * A lock of Laravel's cache, on top of Tagsweep\DistributedLock: block() waits in line instead of
 * sleeping, and owner() is what proves ownership, from the acquisition on.
 */
final class LaravelLock extends Lock
{
    private ?DistributedLock $lock = null;

    /** A release of it failed: what comes next goes by the owner. */
    private bool $spent = false;

    /**
     * @param array<string, mixed> $options of Tagsweep\DistributedLock
     * @param int|float            $forEver TTL that stands for Laravel's "until released"
     */
    public function __construct(
        private readonly Server $server,
        string $name,
        int|float $seconds,
        #[\SensitiveParameter] ?string $owner,
        private readonly array $options,
        private readonly int|float $forEver,
        private readonly ?string $connection = null,
    ) {
        parent::__construct($name, $seconds, $owner);
        if (self::mayBeOurs($owner)) {
            $this->lock = $this->ofOwner();
        }
    }

    public function acquire(): bool
    {
        return $this->take(0.0);
    }

    /**
     * Waits in line; while this process itself holds it, as Laravel does: by asking again and again.
     *
     * @param int|float $seconds
     *
     * @throws LockTimeoutException
     */
    public function block($seconds, $callback = null): mixed
    {
        $this->takeBefore(microtime(true) + (float) $seconds);
        if (!is_callable($callback)) {
            return true;
        }
        try {
            return $callback();
        } finally {
            $this->release();
        }
    }

    public function release(): bool
    {
        try {
            return $this->unlessLost(static fn (DistributedLock $lock) => $lock->release());
        } catch (ExceptionInterface $e) {
            // The next attempt goes by the owner.
            $this->spent = true;
            throw $e;
        }
    }

    public function forceRelease(): void
    {
        $this->anybodys()->forceRelease();
    }

    /** Gives the lease more time; null: its TTL. Never a lock without one. */
    public function refresh(int|float|null $seconds = null): bool
    {
        $ttl = $seconds === null ? null : $this->ttl($seconds);

        return $this->unlessLost(static fn (DistributedLock $lock) => $lock->refresh($ttl));
    }

    public function isLocked(): bool
    {
        return $this->anybodys()->isLocked();
    }

    /** Whether that owner has it; null: whether nobody has. */
    public function isOwnedBy(#[\SensitiveParameter] $owner): bool
    {
        return ($owner === null || self::mayBeOurs($owner)) && $this->anybodys()->isOwnedBy($owner);
    }

    /** As of Laravel's own Redis lock; null when the lock is of no connection of Laravel. */
    public function getConnectionName(): ?string
    {
        return $this->connection;
    }

    public function isOwnedByCurrentProcess(): bool
    {
        return $this->unlessLost(static fn (DistributedLock $lock) => $lock->verify());
    }

    /** @return array<string, mixed> without what proves ownership */
    public function __debugInfo(): array
    {
        return array_diff_key(get_object_vars($this), ['owner' => null]);
    }

    protected function getCurrentOwner(): string
    {
        return $this->isOwnedByCurrentProcess() ? $this->owner : '';
    }

    /** An owner that is not one of ours holds nothing here. */
    private static function mayBeOurs(#[\SensitiveParameter] mixed $owner): bool
    {
        return $owner !== null && preg_match('/\A[^:]+:[1-9]\d*\|/', (string) $owner) === 1;
    }

    /**
     * A lease that was lost is an answer in Laravel, not an exception.
     *
     * @param callable(DistributedLock): bool $act
     */
    private function unlessLost(callable $act): bool
    {
        try {
            if ($this->spent) {
                $this->lock = $this->ofOwner();
                $this->spent = false;
            }

            return $this->lock !== null && $act($this->lock);
        } catch (LockLostException) {
            return false;
        }
    }

    /** @throws LockTimeoutException */
    private function takeBefore(float $end): void
    {
        do {
            $ours = null;
            try {
                if ($this->take($end - microtime(true))) {
                    return;
                }
            } catch (ReentrantLockException $ours) {
                // It would wait for itself, unless another process was given the owner, to release it.
                usleep((int) max(0, min($this->sleepMilliseconds * 1e3, ($end - microtime(true)) * 1e6)));
            }
        } while ($ours !== null && microtime(true) < $end);
        throw new LockTimeoutException($ours?->getMessage() ?? '', 0, $ours);
    }

    private function take(float $wait): bool
    {
        // Laravel's locks outlive the object; the TTL or release() ends them.
        $lock = $this->anybodys();
        if (!($wait > 0 ? $lock->acquireWithin($wait) : $lock->acquire())) {
            return false;
        }
        $this->lock = $lock;
        $this->spent = false;
        $this->owner = $lock->owner();

        return true;
    }

    private function anybodys(): DistributedLock
    {
        return new DistributedLock($this->server->target(), $this->name, $this->ttl($this->seconds), $this->native());
    }

    private function ofOwner(): DistributedLock
    {
        return DistributedLock::restore($this->server->target(), $this->name, $this->owner, $this->native());
    }

    private function ttl(int|float $seconds): float
    {
        return (float) ($seconds > 0 ? $seconds : $this->forEver);
    }

    /** @return array<string, mixed> */
    private function native(): array
    {
        return ['autoRelease' => false] + $this->options;
    }
}
