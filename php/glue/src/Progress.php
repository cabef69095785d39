<?php

declare(strict_types=1);

namespace Tagsweep\Console;

use Tagsweep\SweepReport;

/** How far a cleanup is: what the manager tells its listener. */
final class Progress
{
    public function __construct(
        public readonly SweepReport $report,
        public readonly float $share,
        private readonly ?float $left,
        private readonly float $effort,
        private readonly float $rate,
    ) {
    }

    /** For people. */
    public function text(): string
    {
        $report = $this->report;
        $slowed = $this->effort < 9.95 ? sprintf(', effort %.1f', $this->effort) : '';
        $left = $this->left === null ? '' : sprintf('%d s left, ', ceil($this->left));

        return sprintf('%s%d tags, %d references (%.0f/s), %d removed%s', $left, $report->tagsSeen, $report->referencesChecked, $this->rate, $report->referencesRemoved, $slowed);
    }

    /**
     * For machines.
     *
     * @return array<string, mixed>
     */
    public function fields(): array
    {
        return ['type' => 'progress', 'share' => $this->share, 'left_s' => $this->left, 'effort' => $this->effort, 'references_per_s' => $this->rate];
    }
}
