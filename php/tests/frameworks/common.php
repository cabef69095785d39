<?php
// Shared by the runs of the frameworks' own code: argv is the folder of the unpacked framework and the
// DSN of a server. Each check prints "ok <what>"; the first that fails ends the run.

declare(strict_types=1);

[, $framework, $dsn] = $argv;
require __DIR__ . '/autoload.php';
load_framework($framework);
require __DIR__ . '/../../glue/autoload.php';

function check(string $what, bool $holds): void
{
    $holds || exit("failed: $what\n");
    echo "ok $what\n";
}

/** What an act throws, by class; null when nothing. */
function thrown(callable $act): ?string
{
    try {
        $act();
    } catch (Throwable $e) {
        return $e::class;
    }

    return null;
}

/** Starts code in another process of the same kind. */
function started(string $code, string ...$arguments): array
{
    global $framework, $dsn;
    $extension = getenv('TAGSWEEP_EXTENSION') ?: dirname(__DIR__, 3) . '/target/release/libtagsweep_php.so';
    $file = tempnam(sys_get_temp_dir(), 'tagsweep');
    file_put_contents($file, "<?php require '" . __DIR__ . "/common.php';\n$code");
    $command = [PHP_BINARY, '-d', "extension=$extension", $file, $framework, $dsn, ...$arguments];
    $process = proc_open($command, [['file', '/dev/null', 'r'], ['pipe', 'w'], STDERR], $pipes);

    return [$process, $pipes[1], $file];
}

/** Runs code in another process; what it printed. */
function elsewhere(string $code, string ...$arguments): string
{
    return ended(started($code, ...$arguments));
}

/** Starts code in another process, and goes on when it waits for the lock. */
function waiting(Redis $redis, string $key, string $code): array
{
    $process = started($code);
    $end = microtime(true) + 10;
    while ($redis->zCard("{lock:$key}:waiters") === 0) {
        microtime(true) < $end || exit("failed: nobody waits for $key\n");
        usleep(1_000);
    }

    return $process;
}

function ended(array $process): string
{
    $printed = stream_get_contents($process[1]);
    proc_close($process[0]);
    unlink($process[2]);

    return $printed;
}

$redis = new Redis();
$redis->connect(substr($dsn, strlen('unix://')));
