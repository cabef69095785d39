<?php

declare(strict_types=1);

namespace Tagsweep\Console;

use Tagsweep\DistributedLock;
use Tagsweep\Exception\InvalidArgumentException;
use Tagsweep\Exception\LockConflictedException;
use Tagsweep\Exception\LockLostException;
use Tagsweep\Exception\UnknownOutcomeException;
use Tagsweep\SweepReport;
use Tagsweep\TagCleanupManager;

/**
 * One cleanup, from options to exit code; what every command runs.
 *
 * SIGINT, SIGTERM and SIGHUP end it between two rounds: what was removed is verified, the lock is
 * released, the partial result is shown.
 */
final class Cleanup
{
    public const DONE = 0;
    public const ERROR = 1;
    public const USAGE = 2;
    public const HELD = 3;
    public const PARTIAL = 4;
    public const UNKNOWN = 5;

    private const JSON_EVERY = 1.0;

    /** A signal came, be it before there was anything to end. */
    private bool $stopped = false;

    public function __construct(private readonly Options $options, private readonly Output $output)
    {
    }

    public function run(): int
    {
        if (!extension_loaded('tagsweep')) {
            $this->output->error('Error: the extension tagsweep is not loaded; add extension=tagsweep.so to php.ini,'
                . " or run php -d extension=/path/to/tagsweep.so {$_SERVER['SCRIPT_NAME']}");

            return self::ERROR;
        }
        try {
            $manager = new TagCleanupManager($this->options->url, $this->options->maxTagAge, $this->options->manager);
        } catch (InvalidArgumentException|\TypeError $e) {
            $told = Options::asTyped($e->getMessage());
            if ($this->options->json) {
                $this->json(['type' => 'error', 'error' => $told]);
            }
            $this->output->error('Error: ' . $told);

            return self::USAGE;
        }
        $manager->onProgress($this->listener());
        $restore = $this->stopOnSignals($manager);
        try {
            return $this->sweep($manager);
        } finally {
            $restore();
        }
    }

    private function sweep(TagCleanupManager $manager): int
    {
        try {
            $count = $this->options->dryRun ? null : $manager->cleanup();
            $report = $this->options->dryRun ? $manager->plan() : $manager->lastReport();
            $this->output->done();
            $this->show($report, $count);

            return $report->complete ? self::DONE : self::PARTIAL;
        } catch (\Exception $e) {
            $this->output->done();
            $report = $manager->lastReport();
            if ($report !== null) {
                $this->show($report, null);
            }
            if ($this->options->json) {
                $e instanceof LockConflictedException ? $this->held() : $this->json(['type' => 'error', 'error' => $e->getMessage()]);
            }
            $this->output->error('Error during cache tag cleanup: ' . $e->getMessage());

            return match (true) {
                $e instanceof LockConflictedException => self::HELD,
                $e instanceof LockLostException => self::PARTIAL,
                $e instanceof UnknownOutcomeException => self::UNKNOWN,
                default => self::ERROR,
            };
        }
    }

    private function listener(): \Closure
    {
        $last = microtime(true);

        return function (SweepReport $report, float $share, ?float $left, float $effort, float $rate) use (&$last): bool {
            $progress = new Progress($report, $share, $left, $effort, $rate);
            $json = $this->options->json;
            if ($json && microtime(true) - $last < self::JSON_EVERY || !Terminal::hasRoom($json)) {
                return !$this->stopped;
            }
            $last = microtime(true);
            if ($json) {
                $this->json($progress->fields(), $report);
            } else {
                $this->output->progress($progress);
            }

            return !$this->stopped;
        };
    }

    private function show(SweepReport $report, ?int $count): void
    {
        if ($this->options->json) {
            $this->json(['type' => 'report'], $report);

            return;
        }
        $would = $report->dryRun ? 'to remove' : 'removed';
        if ($count !== null) {
            $this->output->line("Cleaned up $count orphaned cache tags.");
        } elseif ($report->dryRun) {
            $this->output->line("Would clean up {$report->tagsRemoved} orphaned cache tags.");
        }
        if (!$report->complete) {
            $this->output->line("Ended early ({$report->reason}); the result is partial.");
        }
        $this->output->line("  tags        {$report->tagsSeen} seen, {$report->tagsRemoved} $would, {$report->tagsPruned} pruned, {$report->tagsAged} aged, {$report->tagsUnchanged} unchanged, {$report->tagsSkipped} skipped");
        $this->output->line("  references  {$report->referencesChecked} checked, {$report->referencesRemoved} $would, {$report->referencesRestored} restored");
        $this->output->line(sprintf('  entries     %d invalidated', $report->entriesInvalidated));
        $this->output->line(sprintf('  time        %.2f s, %.2f s of it the server\'s', $report->duration, $report->server));
        foreach ($report->samples as $sample) {
            $this->output->line("  example     {$sample['tag']} would lose {$sample['entry']}: {$sample['why']}");
        }
        foreach ($report->warnings as $warning) {
            $this->output->error("Warning: $warning");
        }
    }

    /** Another has the lock: who, for whoever reads the lines. */
    private function held(): void
    {
        $lock = $this->options->manager['lock'] ?? 'cache_tag_cleanup';
        $server = array_intersect_key($this->options->manager, ['prefix' => true, 'timeout' => true]);
        try {
            $holder = (new DistributedLock($this->options->url, $lock, 60, $server))->getHolder();
        } catch (\Exception) {
            $holder = null; // what is known is that somebody has it
        }
        $this->json(['type' => 'held', 'lock' => $lock, 'host' => $holder['host'] ?? null, 'pid' => $holder['pid'] ?? null,
            'fence' => $holder['fence'] ?? null, 'ttl_s' => $holder['ttl'] ?? null]);
    }

    /** @param array<string, mixed> $line */
    private function json(array $line, ?SweepReport $report = null): void
    {
        $flags = JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE | JSON_INVALID_UTF8_SUBSTITUTE;
        $this->output->line((string) json_encode($line + ($report?->jsonSerialize() ?? []), $flags));
    }

    /** Without pcntl a signal still releases the lock, but ends PHP before it can show the result. */
    private function stopOnSignals(TagCleanupManager $manager): \Closure
    {
        if (!function_exists('pcntl_signal')) {
            return static function (): void {
            };
        }
        $signals = [SIGINT, SIGTERM, SIGHUP];
        $async = pcntl_async_signals(true);
        $before = array_map(pcntl_signal_get_handler(...), $signals);
        foreach ($signals as $signal) {
            pcntl_signal($signal, function () use ($manager): void {
                $this->stopped = true;
                $manager->stop();
            });
        }

        return static function () use ($signals, $before, $async): void {
            foreach ($signals as $at => $signal) {
                pcntl_signal($signal, $before[$at]);
            }
            pcntl_async_signals($async);
        };
    }
}
