<?php

declare(strict_types=1);

namespace Tagsweep\Console;

/** Where a cleanup shows what it does. */
interface Output
{
    public function line(string $text): void;

    public function error(string $text): void;

    public function progress(Progress $progress): void;

    /** The cleanup has ended; what moved may stand still. */
    public function done(): void;
}
