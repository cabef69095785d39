<?php
// A contender of benches/peers/locks.php: argv is the engine, a socket, the file of its history, the
// folder of the unpacked packages. Takes the lock again and again for four milliseconds, until a file
// <socket>.stop appears.

declare(strict_types=1);

[, $engine, $socket, $history, $packages] = $argv;
spl_autoload_register(static function (string $class) use ($packages): void {
    foreach (['symfony-trixie', 'laravel-trixie'] as $package) {
        foreach (['', 'Illuminate/Macroable/', 'Illuminate/Collections/'] as $room) {
            $path = str_replace('\\', '/', $room === '' ? $class : str_replace('Illuminate\\Support\\', '', $class));
            $file = "$packages/$package/usr/share/php/$room$path.php";
            if (is_file($file)) {
                require_once $file;

                return;
            }
        }
    }
});

$redis = new Redis();
$redis->connect($socket);

/** @var callable(): (callable(): void) takes the lock, and answers what gives it back */
$take = match ($engine) {
    'tagsweep' => (static function () use ($socket) {
        $lock = new Tagsweep\DistributedLock("unix://$socket", 'bench', 30);

        return static function () use ($lock) {
            $lock->acquireWithin(60);

            return static fn () => $lock->release();
        };
    })(),
    'Symfony Lock' => (static function () use ($redis) {
        $factory = new Symfony\Component\Lock\LockFactory(new Symfony\Component\Lock\Store\RedisStore($redis));

        return static function () use ($factory) {
            $lock = $factory->createLock('bench', 30);
            $lock->acquire(true);

            return static fn () => $lock->release();
        };
    })(),
    'Laravel (its lock, its waiting)' => (static function () use ($redis, $packages) {
        // RedisLock's two commands and Lock's loop; the facade around them needs an application.
        return static function () use ($redis) {
            $owner = bin2hex(random_bytes(8));
            while (!$redis->set('bench', $owner, ['NX', 'EX' => 30])) {
                usleep(250_000);
            }

            return static fn () => $redis->eval("if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end", ['bench', $owner], 1);
        };
    })(),
    'pub/sub, then acquire (Redisson\'s way)' => (static function () use ($redis, $socket) {
        return static function () use ($redis, $socket) {
            $owner = bin2hex(random_bytes(8));
            while (!$redis->set('bench', $owner, ['NX', 'EX' => 30])) {
                $ear = new Redis();
                $ear->connect($socket, 0, 0, null, 0, 1.0);
                try {
                    $ear->rawCommand('SUBSCRIBE', 'bench:free');
                    if (!$redis->exists('bench')) {
                        continue;
                    }
                    $ear->subscribe(['bench:free'], static fn (Redis $ear) => $ear->close());
                } catch (RedisException) {
                    // Nobody gave it back in a second, or the ear is closed.
                }
            }

            return static fn () => $redis->eval("if redis.call('get',KEYS[1]) == ARGV[1] then redis.call('del',KEYS[1]) return redis.call('publish','bench:free','1') else return 0 end", ['bench', $owner], 1);
        };
    })(),
};

$lines = '';
while (!file_exists("$socket.stop")) {
    $asked = hrtime(true);
    $give = $take();
    $had = hrtime(true);
    usleep(4_000);
    $released = hrtime(true);
    $give();
    $lines .= "$asked $had $released\n";
}
file_put_contents($history, $lines);
