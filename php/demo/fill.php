<?php
// Writes, shows and removes the demo's tagged cache: php fill.php write|show|clear PREFIX, with REDIS_URL

declare(strict_types=1);

const TAGS = 4000;
const MEMBERS = 10;

[, $what, $prefix] = $argv + [1 => '', ''];
$redis = connect((string) getenv('REDIS_URL'));
$redis->setOption(Redis::OPT_PREFIX, $prefix);
match ($what) {
    'write' => write($redis),
    'show' => show($redis),
    'clear' => clear($redis, $prefix),
    default => exit("usage: REDIS_URL=… php fill.php write|show|clear PREFIX\n"),
};

function connect(string $url): Redis
{
    $parts = parse_url(str_replace('unix:///', 'unix://localhost/', $url));
    $redis = new Redis();
    if (($parts['scheme'] ?? '') === 'unix') {
        parse_str($parts['query'] ?? '', $query);
        $redis->connect($parts['path']);
        $db = (int) ($query['db'] ?? 0);
    } else {
        $host = ($parts['scheme'] ?? '') === 'rediss' ? 'tls://' . $parts['host'] : $parts['host'];
        $redis->connect($host, $parts['port'] ?? 6379, 5.0);
        $user = rawurldecode($parts['user'] ?? '');
        if (isset($parts['pass'])) {
            $password = rawurldecode($parts['pass']);
            $redis->auth($user === '' ? $password : [$user, $password]);
        }
        $db = (int) trim($parts['path'] ?? '', '/');
    }
    if ($db !== 0) {
        $redis->select($db);
    }

    return $redis;
}

/** As an application does: the entry with its lifetime, then a reference in each of its tags. */
function write(Redis $redis): void
{
    for ($tag = 0; $tag < TAGS; $tag++) {
        $pipe = $redis->multi(Redis::PIPELINE);
        for ($i = 0; $i < MEMBERS; $i++) {
            $entry = "page:$tag:$i";
            // Of four tags: two live, one half expired, one expired as a whole (1 ms is over at once).
            $expires = $tag % 4 === 3 || ($tag % 4 === 2 && $i % 2 === 0);
            $pipe->set($entry, "<html>$entry</html>", $expires ? ['px' => 1] : ['ex' => 3600]);
            $pipe->sAdd("tag:category_$tag", $entry);
        }
        $pipe->exec();
    }
    printf("%d tags of %d references: half live, a quarter half stale, a quarter orphaned\n", TAGS, MEMBERS);
}

function show(Redis $redis): void
{
    [$tags, $orphaned, $references, $stale] = [0, 0, 0, 0];
    for ($tag = 0; $tag < TAGS; $tag++) {
        $members = $redis->sMembers("tag:category_$tag");
        if ($members === []) {
            continue;
        }
        $live = $redis->exists($members);
        $tags++;
        $references += count($members);
        $stale += count($members) - $live;
        $orphaned += $live === 0 ? 1 : 0;
    }
    printf("%5d tags, %5d of them orphaned; %6d references, %6d of them stale\n", $tags, $orphaned, $references, $stale);
}

function clear(Redis $redis, string $prefix): void
{
    for ($tag = 0; $tag < TAGS; $tag++) {
        $redis->unlink("tag:category_$tag", ...array_map(static fn (int $i) => "page:$tag:$i", range(0, MEMBERS - 1)));
    }
    $redis->setOption(Redis::OPT_PREFIX, '');
    // Records of ages are spread over many keys.
    $records = array_map(static fn (int $n) => "records:$n", range(0, 8191));
    foreach (['fence', 'mapping', 'stats', 'runs', 'checkpoint', 'history', 'sweeps', ...$records] as $what) {
        $redis->unlink('{' . $prefix . "lock:cache_tag_cleanup}:$what");
    }
}
