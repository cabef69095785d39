<?php

declare(strict_types=1);

namespace Tagsweep\Bridge;

/** What it holds may be a password: it shows in no dump, and is stored nowhere. */
trait KeepsSecrets
{
    /** @return array<string, mixed> */
    public function __debugInfo(): array
    {
        return array_diff_key(get_object_vars($this), ['redis' => null]);
    }

    /** @return never */
    public function __serialize(): array
    {
        throw new \LogicException(static::class . ' cannot be serialized: it holds the credentials of a server. Hand on the owner of a lock instead.');
    }
}
