<?php
// Runs the engines in turn, each on the same snapshot, and prints medians and ratios. Half of the tags
// are orphaned, of the others every second member is stale.
//   php side_by_side.php TAGS ROUNDS

declare(strict_types=1);

const MEMBERS = 10;
/** Idle seconds that the default grace asks for. */
const GRACE = 7;

[$tags, $rounds] = [(int) $argv[1], (int) $argv[2]];
$folder = sys_get_temp_dir() . '/tagsweep-bench-' . getmypid();
mkdir($folder);
register_shutdown_function(function () use ($folder): void {
    array_map('unlink', glob("$folder/*"));
    rmdir($folder);
});

final class Server
{
    /** @var resource */
    private $process;
    public readonly int $pid;

    public function __construct(public readonly string $folder)
    {
        // The LRU policy has idle times saved in the snapshot; without a memory limit nothing is evicted.
        $command = ['redis-server', '--port', '0', '--unixsocket', "$folder/s", '--dir', $folder, '--save', '',
            '--maxmemory-policy', 'volatile-lru', '--slowlog-log-slower-than', '1000', '--slowlog-max-len', '1000'];
        $this->process = proc_open($command, [['file', '/dev/null', 'r'], ['pipe', 'w'], ['pipe', 'w']], $pipes);
        $this->pid = proc_get_status($this->process)['pid'];
        while (($line = fgets($pipes[1])) !== false && stripos($line, 'ready to accept') === false) {
        }
    }

    public function redis(): Redis
    {
        $redis = new Redis();
        $redis->connect("{$this->folder}/s");

        return $redis;
    }

    /** CPU time used (s). */
    public function cpu(): float
    {
        return (int) explode(' ', file_get_contents("/proc/{$this->pid}/schedstat"))[0] / 1e9;
    }

    public function stop(): void
    {
        proc_terminate($this->process, SIGKILL);
        proc_close($this->process);
        unlink("{$this->folder}/s");
    }
}

function fill(Redis $redis, int $tags): void
{
    for ($tag = 0; $tag < $tags; $tag++) {
        $pipe = $redis->multi(Redis::PIPELINE);
        $members = array_map(fn (int $i) => "item:$tag:$i", range(0, MEMBERS - 1));
        $pipe->sAdd("tag:t$tag", ...$members);
        if ($tag % 2 === 0) {
            array_map(fn (int $i) => $pipe->set($members[$i], 'value'), range(0, MEMBERS - 1, 2));
        }
        $pipe->set("other:$tag:a", 'x');
        $pipe->set("other:$tag:b", 'x');
        $pipe->exec();
    }
}

/** @return array{wall: float, cpu: float, rss: float, removed: int, slowest: float} */
function measure(string $engine, Server $server, string $root): array
{
    $extension = "$root/target/release/libtagsweep_php.so";
    $command = $engine === 'tagsweep-cli'
        ? ["$root/target/release/tagsweep", 'sweep', '--json', '--url', "unix://{$server->folder}/s"]
        : [PHP_BINARY, '-d', "extension=$extension", __DIR__ . '/engines.php', $engine, "{$server->folder}/s"];
    $server->redis()->rawCommand('SLOWLOG', 'RESET');
    $cpu = $server->cpu();
    $begun = microtime(true);
    $process = proc_open($command, [['file', '/dev/null', 'r'], ['pipe', 'w'], ['pipe', 'w']], $pipes);
    $peak = 0;
    $pid = proc_get_status($process)['pid'];
    stream_set_blocking($pipes[1], false);
    $output = '';
    while (!feof($pipes[1])) {
        $output .= (string) fread($pipes[1], 65536);
        if (preg_match('/VmHWM:\s+(\d+)/', (string) @file_get_contents("/proc/$pid/status"), $found)) {
            $peak = max($peak, (int) $found[1]);
        }
        usleep(2000);
    }
    $errors = stream_get_contents($pipes[2]);
    $wall = microtime(true) - $begun;
    if (proc_close($process) !== 0) {
        throw new RuntimeException("$engine failed: $output$errors");
    }
    $lines = explode("\n", trim($output));
    $removed = $engine === 'tagsweep-cli' ? json_decode(end($lines), true)['tags_removed'] : (int) trim($output);
    $slow = array_map(fn ($entry) => $entry[2] / 1000, $server->redis()->rawCommand('SLOWLOG', 'GET', '1000'));

    return ['wall' => $wall, 'cpu' => $server->cpu() - $cpu, 'rss' => $peak / 1024, 'removed' => $removed, 'slowest' => $slow === [] ? 0.0 : max($slow)];
}

function median(array $figures): float
{
    sort($figures);

    return $figures[intdiv(count($figures), 2)];
}

$root = dirname(__DIR__, 2);
$server = new Server($folder);
fill($server->redis(), $tags);
sleep(GRACE);
$version = $server->redis()->info('server')['redis_version'];
$server->redis()->save();
$server->stop();
copy("$folder/dump.rdb", "$folder/snapshot");

$engines = ['php-loop', 'php-pipelined', 'php-look', 'tagsweep-php', 'tagsweep-cli'];
$runs = array_fill_keys($engines, []);
for ($round = 0; $round < $rounds; $round++) {
    foreach ($engines as $engine) {
        copy("$folder/snapshot", "$folder/dump.rdb");
        $server = new Server($folder);
        $runs[$engine][] = $run = measure($engine, $server, $root);
        $server->stop();
        if ($engine !== 'php-look' && $run['removed'] !== intdiv($tags, 2)) {
            throw new RuntimeException("$engine removed {$run['removed']} tags instead of " . intdiv($tags, 2));
        }
    }
}
printf("%d tags of %d members, half orphaned, half partly stale, among %d other keys; redis-server %s, PHP %s, phpredis %s; unix socket; medians of %d\n\n", $tags, MEMBERS, intdiv(9 * $tags, 2), $version, PHP_VERSION, phpversion('redis'), $rounds);
printf("%-16s %9s %9s %9s %9s %12s %9s\n", 'engine', 'wall s', 'server s', 'busy %', 'client MB', 'slowest ms', 'x faster');
$base = median(array_column($runs['php-loop'], 'wall'));
foreach ($runs as $engine => $figures) {
    $wall = median(array_column($figures, 'wall'));
    $cpu = median(array_column($figures, 'cpu'));
    printf("%-16s %9.3f %9.3f %9.0f %9.1f %12s %9.1f\n", $engine, $wall, $cpu, 100 * $cpu / $wall, max(array_column($figures, 'rss')), max(array_column($figures, 'slowest')) ?: '< 1', $base / $wall);
}
