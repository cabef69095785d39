<?php
// The engines: each cleans the tags of the server at $argv[2] and prints how many tags it removed.
//   php engines.php ENGINE SOCKET

declare(strict_types=1);

[, $engine, $socket] = $argv;
echo match ($engine) {
    'php-loop' => loop(connect($socket)),
    'php-pipelined' => pipelined(connect($socket), true),
    'php-look' => pipelined(connect($socket), false),
    'lua-pages' => pages(connect($socket)),
    'laravel-prune' => prune($socket),
    'symfony-invalidate' => invalidate(connect($socket)),
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

/**
 * A page in three round trips: SCAN, SMEMBERS, EXISTS of each member, SREM of the stale ones. A writer
 * between the second and the third loses what it wrote. Without removal, the barest look: one EXISTS a tag.
 */
function pipelined(Redis $redis, bool $removes): int
{
    [$cursor, $count] = [null, 0];
    $redis->setOption(Redis::OPT_SCAN, Redis::SCAN_RETRY);
    while (($keys = $redis->scan($cursor, 'tag:*', 100)) !== false) {
        $pipe = $redis->multi(Redis::PIPELINE);
        array_map($pipe->sMembers(...), $keys);
        $members = $pipe->exec();
        $pipe = $redis->multi(Redis::PIPELINE);
        foreach ($members as $some) {
            array_map($pipe->exists(...), $removes ? $some : [$some]);
        }
        $alive = $pipe->exec();
        if ($removes) {
            $count += remove($redis, $keys, $members, $alive);
        }
        if ($cursor === 0) {
            break;
        }
    }

    return $count;
}

/** Removes the members that are not alive; answers how many tags lost all. */
function remove(Redis $redis, array $keys, array $members, array $alive): int
{
    [$at, $emptied, $pipe] = [0, 0, $redis->multi(Redis::PIPELINE)];
    foreach ($keys as $i => $key) {
        $stale = array_filter($members[$i], function () use ($alive, &$at) {
            return !$alive[$at++];
        });
        if ($stale !== []) {
            $pipe->sRem($key, ...array_values($stale));
            $emptied += (int) (count($stale) === count($members[$i]));
        }
    }
    $pipe->exec();

    return $emptied;
}

/** One script a page of a thousand keys, which does all at once. */
function pages(Redis $redis): int
{
    $script = <<<'LUA'
        local page, count = redis.call('SCAN', ARGV[1], 'MATCH', 'tag:*', 'COUNT', 1000), 0
        for _, key in ipairs(page[2]) do
            for _, member in ipairs(redis.call('SMEMBERS', key)) do
                if redis.call('EXISTS', member) == 0 then redis.call('SREM', key, member) end
            end
            if redis.call('EXISTS', key) == 0 then count = count + 1 end
        end
        return {page[1], count}
        LUA;
    [$cursor, $count] = ['0', 0];
    do {
        [$cursor, $emptied] = $redis->eval($script, [$cursor]);
        $count += $emptied;
    } while ($cursor !== '0');

    return $count;
}

/** Laravel's own pruning of its tags, as `cache:prune-stale-tags` does it. */
function prune(string $socket): int
{
    $illuminate = framework('laravel-trixie') . '/usr/share/php/Illuminate';
    require "$illuminate/Collections/helpers.php";
    require "$illuminate/Support/helpers.php";
    $servers = ['default' => ['host' => $socket, 'port' => 0, 'database' => 0]];
    $store = new Illuminate\Cache\RedisStore(new Illuminate\Redis\RedisManager(null, 'phpredis', $servers));
    $store->flushStaleTags();

    return 0;
}

/** Symfony's own invalidation of all tags, a hundred at a time. */
function invalidate(Redis $redis): int
{
    framework('symfony-bookworm');
    $adapter = new Symfony\Component\Cache\Adapter\RedisTagAwareAdapter($redis);
    for ($count = 0; $redis->exists("\0tags\0t$count"); $count += 100) {
        $adapter->invalidateTags(array_map(fn (int $tag) => "t$tag", range($count, $count + 99)));
    }

    return $count;
}

function framework(string $name): string
{
    error_reporting(E_ALL & ~E_DEPRECATED & ~E_USER_DEPRECATED);
    require __DIR__ . '/../../php/tests/frameworks/autoload.php';
    load_framework($folder = dirname(__DIR__, 2) . "/target/packages/$name");

    return $folder;
}
