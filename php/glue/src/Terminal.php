<?php

declare(strict_types=1);

namespace Tagsweep\Console;

use Tagsweep\SweepReport;

/** Standard output and error; a moving line on a terminal, a line a second elsewhere if asked for. */
final class Terminal implements Output
{
    private readonly bool $moves;
    private float $last = 0.0;
    private ?string $unwritten = null;

    public function __construct(bool $json, private readonly bool $progress)
    {
        $this->moves = !$json && stream_isatty(STDERR);
    }

    public function line(string $text): void
    {
        $line = $text . "\n";
        if (@fwrite(STDOUT, $line) !== strlen($line)) {
            $why = error_get_last()['message'] ?? 'nobody takes it';
            // Who reads no more has read enough.
            $this->unwritten ??= str_contains($why, 'errno=32') ? null : $why;
        }
    }

    /** Why a line could not be written, if one could not. */
    public function unwritten(): ?string
    {
        return $this->unwritten;
    }

    public function error(string $text): void
    {
        fwrite(STDERR, $text . "\n");
    }

    public function progress(SweepReport $report, float $share, ?float $left): void
    {
        if ($this->moves) {
            fwrite(STDERR, "\r" . self::bar($report, $share, $left) . "\e[K");
        } elseif ($this->progress && microtime(true) - $this->last >= 1.0) {
            $this->last = microtime(true);
            fwrite(STDERR, self::bar($report, $share, $left) . "\n");
        }
    }

    public static function bar(SweepReport $report, float $share, ?float $left): string
    {
        $bar = str_pad(str_repeat('#', (int) ($share * 30)), 30, '.');
        $waits = match (true) {
            $left !== null => sprintf(', %d s left', ceil($left)),
            default => '',
        };

        return sprintf('[%s] %3d %%  %d tags, %d references removed%s', $bar, (int) ($share * 100), $report->tagsSeen, $report->referencesRemoved, $waits);
    }

    public function done(): void
    {
        if ($this->moves) {
            fwrite(STDERR, "\r\e[K");
        }
    }
}
