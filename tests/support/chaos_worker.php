<?php
// A contender of tests/chaos.rs in PHP: argv is the kind ("php", or "old" for the class that
// applications had before), a socket, a lock, and the file of its history.

declare(strict_types=1);

[, $kind, $socket, $name, $history] = $argv;

/** The design's class, as applications have it. */
final class OldLock
{
    public string $token = '';

    public function __construct(private Redis $redis, private string $key, private int $ttl)
    {
    }

    public function acquire(): bool
    {
        $this->token = 'old-' . uniqid('', true);

        return $this->redis->set('lock:' . $this->key, $this->token, ['NX', 'EX' => $this->ttl]);
    }

    public function release(): bool
    {
        $script = 'if redis.call("get", KEYS[1]) == ARGV[1] then return redis.call("del", KEYS[1]) else return 0 end';

        return $this->redis->eval($script, ['lock:' . $this->key, $this->token], 1) > 0;
    }
}

$say = static fn (string $line) => file_put_contents($history, "$line\n", FILE_APPEND);
$now = static fn (): int => intdiv(hrtime(true), 1000);

while (true) {
    try {
        if ($kind === 'old') {
            $redis = new Redis();
            $redis->connect($socket, 0, 1.0);
            $lock = new OldLock($redis, $name, 1);
            for ($i = 0; $i < 200; $i++) {
                $before = $now();
                if (!$lock->acquire()) {
                    usleep(random_int(1_000, 20_000));
                    continue;
                }
                // It has no deadline of its own: what it may believe is counted from before the request.
                for ($n = 0; $n < 3; $n++) {
                    $at = $now();
                    if ($now() - $before < 900_000) {
                        $say("$at {$lock->token} 0");
                    }
                    usleep(1_000);
                }
                $lock->release();
                usleep(20_000);
            }
        } else {
            $lock = new Tagsweep\DistributedLock("unix://$socket", $name, 0.4, ['renew' => (bool) random_int(0, 1), 'timeout' => 1]);
            for ($i = 0; $i < 50; $i++) {
                if (!$lock->acquireWithin(2)) {
                    continue;
                }
                for ($n = random_int(1, 5); $n > 0; $n--) {
                    $at = $now();
                    $fence = $lock->fence();
                    if ($lock->isAcquired()) {
                        $say("$at $fence $fence");
                    }
                    usleep(500);
                }
                $lock->release();
            }
        }
    } catch (RedisException | Tagsweep\Exception\ExceptionInterface) {
        // What a lost answer or a lost lease brings: the next round tells.
    }
}
