<?php
// Locks side by side from PHP, on private servers: the two commands of the design's class over phpredis
// and ours; and handover between processes, with the waiting of Symfony Lock, of Laravel and of Redisson.
//   php -d extension=… benches/peers/locks.php [SECONDS]

declare(strict_types=1);

require __DIR__ . '/../../php/tests/Server.php';

$seconds = (float) ($argv[1] ?? 4);
$packages = dirname(__DIR__, 2) . '/target/packages';
$extension = dirname(__DIR__, 2) . '/target/release/libtagsweep_php.so';

function median(array $values): float
{
    sort($values);

    return $values[intdiv(count($values), 2)];
}

function quantile(array $values, float $share): float
{
    sort($values);

    return $values[min(count($values) - 1, (int) (count($values) * $share))];
}

/** Acquire and release, the engines taking turns. */
function uncontended(string $over, string $dsn, Redis $redis): void
{
    $script = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end";
    $lock = new Tagsweep\DistributedLock($dsn, 'ours', 60);
    $spans = ['PING' => [], 'phpredis: SET NX EX, EVAL' => [], 'tagsweep' => []];
    for ($i = 0; $i < 8_000; $i++) {
        $a = hrtime(true);
        $redis->ping();
        $b = hrtime(true);
        $token = uniqid('', true);
        $redis->set('lock:theirs', $token, ['NX', 'EX' => 60]);
        $redis->eval($script, ['lock:theirs', $token], 1);
        $c = hrtime(true);
        $lock->acquire();
        $lock->release();
        $d = hrtime(true);
        $spans['PING'][] = $b - $a;
        $spans['phpredis: SET NX EX, EVAL'][] = $c - $b;
        $spans['tagsweep'][] = $d - $c;
    }
    $base = median($spans['phpredis: SET NX EX, EVAL']);
    foreach ($spans as $engine => $values) {
        printf("| %s | %s | %.1f | %.2f |\n", $over, $engine, median($values) / 1e3, median($values) / $base);
    }
}

function handover(string $engine, int $waiters, float $seconds, string $packages, string $extension): void
{
    $server = new Server();
    $workers = [];
    for ($i = 0; $i <= $waiters; $i++) {
        $command = [PHP_BINARY, '-d', "extension=$extension", '-d', 'error_reporting=8191', __DIR__ . '/lock_worker.php', $engine, $server->socket, "$server->folder/h$i", $packages];
        $workers[] = proc_open($command, [['file', '/dev/null', 'r'], ['file', '/dev/null', 'w'], STDERR], $pipes);
    }
    usleep(500_000);
    $redis = $server->redis();
    $pings = [];
    $before = $redis->info('stats')['total_commands_processed'];
    $begun = hrtime(true);
    for ($end = microtime(true) + $seconds; microtime(true) < $end; usleep(50_000)) {
        $a = hrtime(true);
        $redis->ping();
        $pings[] = hrtime(true) - $a;
    }
    $stopped = hrtime(true);
    $commands = $redis->info('stats')['total_commands_processed'] - $before - count($pings);
    touch("$server->socket.stop");
    $grants = [];
    foreach ($workers as $i => $worker) {
        proc_close($worker);
        foreach (file("$server->folder/h$i") as $line) {
            $grants[] = array_map(intval(...), explode(' ', $line));
        }
    }
    usort($grants, static fn ($a, $b) => $a[1] <=> $b[1]);
    $grants = array_values(array_filter($grants, static fn ($g) => $g[1] > $begun && $g[1] < $stopped));
    $gaps = $waits = [];
    foreach ($grants as $i => [$asked, $had]) {
        $waits[] = $had - $asked;
        if ($i > 0) {
            $gaps[] = max(0, $had - $grants[$i - 1][2]);
        }
    }
    printf("| %s | %d | %.0f | %.2f | %.2f | %d | %.0f | %.0f |\n", $engine, $waiters, median($pings) / 1e3, median($gaps) / 1e6,
        quantile($gaps, 0.99) / 1e6, count($grants), max($waits) / 1e6, $commands / max(1, count($grants)));
}

$server = new Server(true);
$tcp = new Redis();
$tcp->connect('127.0.0.1', $server->port);
echo "acquire and release from PHP, median us, and times the design's two commands\n";
echo "| over | engine | us | x |\n|---|---|---|---|\n";
uncontended('unix', $server->dsn(), $server->redis());
uncontended('TCP', "redis://127.0.0.1:{$server->port}", $tcp);

echo "\nhandover between PHP processes, unix socket, held for 4 ms\n";
echo "| engine | waiters | PING us | p50 ms | p99 ms | grants | longest wait ms | commands a grant, with those in scripts |\n|---|---|---|---|---|---|---|---|\n";
foreach ([1, 10] as $waiters) {
    foreach (['tagsweep', 'pub/sub, then acquire (Redisson\'s way)', 'Symfony Lock', 'Laravel (its lock, its waiting)'] as $engine) {
        handover($engine, $waiters, $seconds, $packages, $extension);
    }
}
handover('tagsweep', 100, $seconds, $packages, $extension);
