<?php

declare(strict_types=1);

namespace Tagsweep\Console;

/** The command without a framework. */
final class CommandLine
{
    /** @param list<string> $argv */
    public static function run(array $argv): int
    {
        array_shift($argv);
        try {
            $given = self::parse($argv);
            if ($given === null) {
                fwrite(STDOUT, self::help());

                return Cleanup::DONE;
            }
            $options = new Options($given);
        } catch (UsageError $e) {
            fwrite(STDERR, "Error: {$e->getMessage()}\nTry --help.\n");

            return Cleanup::USAGE;
        }
        $terminal = new Terminal($options->json, $options->progress);
        $status = (new Cleanup($options, $terminal))->run();
        if ($terminal->unwritten() !== null) {
            $terminal->error("Error: the output could not be written: {$terminal->unwritten()}");
        }

        return $status === Cleanup::DONE && $terminal->unwritten() !== null ? Cleanup::ERROR : $status;
    }

    /**
     * @param list<string> $arguments
     *
     * @return array<string, string|bool>|null null when help is asked for
     */
    private static function parse(array $arguments): ?array
    {
        $given = [];
        while ($arguments !== []) {
            $argument = array_shift($arguments);
            if ($argument === '--help' || $argument === '-h') {
                return null;
            }
            if (!str_starts_with($argument, '--')) {
                // It may be a DSN, and hold a password.
                throw new UsageError(str_contains($argument, '://') ? 'unexpected argument; a DSN goes with --url' : "unexpected argument \"$argument\"");
            }
            [$name, $value] = explode('=', substr($argument, 2), 2) + [1 => null];
            [$kind] = Options::TABLE[$name] ?? throw new UsageError('unknown option --' . (str_contains($name, '://') ? '…' : $name));
            if ($value === null && $kind !== Options::FLAG) {
                $value = array_shift($arguments) ?? throw new UsageError("--$name needs a value");
            }
            $given[$name] = $value ?? true;
        }

        return $given;
    }

    private static function help(): string
    {
        $help = "Removes stale references and orphaned cache tags from Redis or Valkey, under a lock.\n\n"
            . "Usage: cache-tag-cleanup [options]\n\nOptions:\n";
        foreach (Options::TABLE as $name => [, $placeholder, $description, $default]) {
            $left = rtrim("--$name $placeholder");
            $help .= sprintf("  %-22s %s%s\n", $left, $description, $default === '' ? '' : " (default: $default)");
        }

        return $help . sprintf("  %-22s %s\n", '-h, --help', 'this text')
            . "\nA SPAN is a number with us, ms, s, m, h or d.\n"
            . "Exit codes: 0 done, 1 error, 2 usage, 3 held by another, 4 lost or interrupted (partial), 5 unknown\n";
    }
}
