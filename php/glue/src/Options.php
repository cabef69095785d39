<?php

declare(strict_types=1);

namespace Tagsweep\Console;

/**
 * The options of the commands: one table for the plain command line and for Symfony's.
 */
final class Options
{
    public const FLAG = 'flag';
    public const TEXT = 'text';
    public const SPAN = 'span';
    public const COUNT = 'count';
    public const SHARE = 'share';

    /** name => [kind, placeholder, description, default shown] */
    public const TABLE = [
        'url' => [self::TEXT, 'DSN', 'redis://[user:password@]host[:port][/db], rediss://… for TLS, or unix:///path[?db=N]', 'REDIS_URL, else redis://127.0.0.1:6379'],
        'prefix' => [self::TEXT, 'TEXT', 'stands before every key, as phpredis\' OPT_PREFIX does', 'none'],
        'entry-prefix' => [self::TEXT, 'TEXT', 'what makes a member the key of its entry', 'the prefix or none, as existing entries prove'],
        'trust-mapping' => [self::FLAG, '', 'go on although no member leads to an existing entry', ''],
        'max-tag-age' => [self::SPAN, 'SPAN', 'tags not used for so long are aged', '7d'],
        'on-aged' => [self::TEXT, 'WHAT', 'keep, or invalidate: delete the entries of aged tags', 'invalidate'],
        'grace' => [self::SPAN, 'SPAN', 'how long a tag must have been left alone', '5s'],
        'verify' => [self::SPAN, 'SPAN', 'time from a removal to the second look', '1s'],
        'max-share' => [self::SHARE, 'SHARE', 'stop when more than this share of the references would go', '1'],
        'max-removals' => [self::COUNT, 'N', 'stop after so many removed references', 'no limit'],
        'max-duration' => [self::SPAN, 'SPAN', 'stop after this time', 'no limit'],
        'max-latency' => [self::SPAN, 'SPAN', 'how much longer others may have to wait for the server', '500us'],
        'effort' => [self::COUNT, '1..10', 'how much of the server\'s time to take at most, in tenths', '10'],
        'memory' => [self::COUNT, 'BYTES', 'memory for what is under way and for what waits', '67108864'],
        'strict' => [self::FLAG, '', 'delete an entry whose reference had to be put back', ''],
        'durable' => [self::FLAG, '', 'note on the server what is removed until it is verified', ''],
        'remember' => [self::SPAN, 'SPAN', 'pass over tags in which nothing can have become stale since, for so long at most', 'look at every tag'],
        'fresh' => [self::FLAG, '', 'begin at the beginning, also when a cleanup was cut short', ''],
        'lock' => [self::TEXT, 'NAME', 'name of the lock', 'cache_tag_cleanup'],
        'lock-ttl' => [self::SPAN, 'SPAN', 'TTL of the lock; extended while it runs', '30s'],
        'wait' => [self::SPAN, 'SPAN', 'how long to wait for the lock', '0s'],
        'timeout' => [self::SPAN, 'SPAN', 'longest time of one call to the server', '5s'],
        'dry-run' => [self::FLAG, '', 'show what would be done, write nothing', ''],
        'progress' => [self::FLAG, '', 'show progress also where there is no terminal, a line a second', ''],
        'json' => [self::FLAG, '', 'one JSON object a line, the report last', ''],
    ];

    private const UNITS = ['us' => 1e-6, 'ms' => 1e-3, 's' => 1.0, '' => 1.0, 'm' => 60.0, 'h' => 3600.0, 'd' => 86400.0];

    public readonly string $url;
    public readonly int $maxTagAge;
    public readonly bool $dryRun;
    public readonly bool $json;
    public readonly bool $progress;
    /** @var array<string, mixed> for TagCleanupManager */
    public readonly array $manager;

    /**
     * @param array<string, string|bool|int|float|null> $given values by option name, as typed, or as code gives them
     * @param string|null                               $url   where none is given
     *
     * @throws UsageError
     */
    public function __construct(#[\SensitiveParameter] array $given, #[\SensitiveParameter] ?string $url = null)
    {
        $given = array_filter($given, static fn ($value) => $value !== null && $value !== false);
        $values = [];
        foreach ($given as $name => $value) {
            [$kind] = self::TABLE[$name] ?? throw new UsageError("unknown option --$name");
            $values[$name] = self::read($kind, $name, $value);
        }
        $this->url = $values['url'] ?? $url ?? self::environment() ?? 'redis://127.0.0.1:6379';
        $this->maxTagAge = (int) ceil($values['max-tag-age'] ?? 604800);
        $this->dryRun = $values['dry-run'] ?? false;
        $this->json = $values['json'] ?? false;
        $this->progress = $values['progress'] ?? false;
        if ($values['fresh'] ?? false) {
            $values['resume'] = false;
        }
        unset($values['fresh'], $values['progress'], $values['url'], $values['max-tag-age'], $values['dry-run'], $values['json']);
        $manager = [];
        foreach ($values as $name => $value) {
            $manager[self::inPhp($name)] = $value;
        }
        $this->manager = $manager;
    }

    /** A message of the extension, with options as they are typed here. */
    public static function asTyped(string $message): string
    {
        $composite = array_filter(array_keys(self::TABLE), static fn (string $name) => str_contains($name, '-'));
        $typed = array_combine(array_map(self::inPhp(...), $composite), array_map(static fn (string $name) => "--$name", $composite));

        return strtr($message, $typed);
    }

    /** How an option is named in PHP. */
    private static function inPhp(string $name): string
    {
        return lcfirst(str_replace('-', '', ucwords($name, '-')));
    }

    /** @return array<string, mixed> without the DSN, which may hold a password */
    public function __debugInfo(): array
    {
        return array_diff_key(get_object_vars($this), ['url' => null]);
    }

    /** What REDIS_URL says, also where a .env file was read and the environment itself was left alone. */
    private static function environment(): ?string
    {
        foreach ([$_ENV['REDIS_URL'] ?? null, $_SERVER['REDIS_URL'] ?? null, getenv('REDIS_URL')] as $url) {
            if (is_string($url) && $url !== '') {
                return $url;
            }
        }

        return null;
    }

    /** @throws UsageError */
    private static function read(string $kind, string $name, string|bool|int|float $value): mixed
    {
        if ($kind === self::FLAG) {
            return match ($value) {
                true, '', 1, '1' => true,
                0, '0' => false,
                default => throw new UsageError("--$name takes no value"),
            };
        }
        $value = is_bool($value) ? $value : (string) $value;
        if (!is_string($value)) {
            throw new UsageError("--$name needs a value");
        }

        return match ($kind) {
            self::TEXT => $value,
            self::SPAN => self::seconds($name, $value),
            self::COUNT => ctype_digit($value) ? (int) $value : throw new UsageError("--$name must be a whole number, not " . self::shown($value)),
            self::SHARE => is_numeric($value) ? (float) $value : throw new UsageError("--$name must be a number, not " . self::shown($value)),
        };
    }

    /** A value as it may be shown: what looks like a DSN may hold a password. */
    private static function shown(string $value): string
    {
        return str_contains($value, '://') ? 'a DSN' : "\"$value\"";
    }

    private static function seconds(string $name, string $value): float
    {
        if (!preg_match('/^(\d+(?:\.\d+)?)(us|ms|s|m|h|d|)$/', $value, $found)) {
            throw new UsageError("--$name must be a span such as 500ms, 30s, 5m, 12h or 7d, not " . self::shown($value));
        }

        return (float) $found[1] * self::UNITS[$found[2]];
    }
}
