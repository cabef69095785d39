<?php

declare(strict_types=1);

namespace Tagsweep\Console;

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

    /**
     * Whether a line can be written at once, to standard output or error. Whoever does not read (a pipe that is
     * full, a terminal that was stopped) misses some, and holds no sweep up.
     */
    public static function hasRoom(bool $output): bool
    {
        $stream = \defined('STDOUT') ? ($output ? STDOUT : STDERR) : null;
        if (!\is_resource($stream)) {
            return true; // closed, or run by a web server
        }
        [$to, $none] = [[$stream], null];

        return @stream_select($none, $to, $none, 0) === 1;
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

    public function progress(Progress $progress): void
    {
        if ($this->moves) {
            // A line that is longer than the terminal is wide could not be taken back.
            $width = (int) (getenv('COLUMNS') ?: 80);
            fwrite(STDERR, "\r" . substr(self::bar($progress), 0, $width - 1) . "\e[K");
        } elseif ($this->progress && microtime(true) - $this->last >= 1.0) {
            $this->last = microtime(true);
            fwrite(STDERR, self::bar($progress) . "\n");
        }
    }

    public static function bar(Progress $progress): string
    {
        $bar = str_pad(str_repeat('#', (int) ($progress->share * 20)), 20, '.');

        return sprintf('[%s] %3d %%  %s', $bar, (int) ($progress->share * 100), $progress->text());
    }

    public function done(): void
    {
        if ($this->moves) {
            fwrite(STDERR, "\r\e[K");
        }
    }
}
