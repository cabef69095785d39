<?php

declare(strict_types=1);

namespace Tagsweep\Console;

use Tagsweep\SweepReport;

/** Where a cleanup shows what it does. */
interface Output
{
    public function line(string $text): void;

    public function error(string $text): void;

    public function progress(SweepReport $report, float $share, ?float $left): void;

    /** The cleanup has ended; what moved may stand still. */
    public function done(): void;
}
