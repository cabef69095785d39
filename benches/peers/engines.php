<?php
// The engines: each cleans the tags of the server at $argv[2] and prints how many it removed.
//   php engines.php ENGINE SOCKET

declare(strict_types=1);

[, $engine, $socket] = $argv;
echo match ($engine) {
    'php-loop' => loop(connect($socket)),
    'php-pipelined' => pipelined(connect($socket)),
    'tagsweep-php' => (new Tagsweep\TagCleanupManager(connect($socket)))->cleanup(),
}, "\n";
fwrite(STDERR, (string) getrusage()['ru_maxrss']);

function connect(string $socket): Redis
{
    $redis = new Redis();
    $redis->connect($socket);

    return $redis;
}

/** The PHP design's loop with the least repair: its cursor must be null, or phpredis sees no key. */
function loop(Redis $redis): int
{
    [$cursor, $count] = [null, 0];
    $redis->setOption(Redis::OPT_SCAN, Redis::SCAN_RETRY);
    while (($keys = $redis->scan($cursor, 'tag:*', 100)) !== false) {
        foreach ($keys as $key) {
            $live = false;
            foreach ($redis->sMembers($key) as $member) {
                if ($redis->exists($member)) {
                    $live = true;
                    break;
                }
            }
            if (!$live) {
                $redis->del($key);
                $count++;
            }
        }
        if ($cursor === 0) {
            break;
        }
    }

    return $count;
}

/** The same, a page in three round trips. */
function pipelined(Redis $redis): int
{
    [$cursor, $count] = [null, 0];
    $redis->setOption(Redis::OPT_SCAN, Redis::SCAN_RETRY);
    while (($keys = $redis->scan($cursor, 'tag:*', 1000)) !== false) {
        $pipe = $redis->multi(Redis::PIPELINE);
        array_map($pipe->sMembers(...), $keys);
        $members = $pipe->exec();
        $pipe = $redis->multi(Redis::PIPELINE);
        array_map($pipe->exists(...), $members);
        $live = $pipe->exec();
        $orphans = array_keys(array_filter(array_combine($keys, $live), fn ($n) => $n === 0));
        if ($orphans !== []) {
            $count += $redis->unlink($orphans);
        }
        if ($cursor === 0) {
            break;
        }
    }

    return $count;
}
