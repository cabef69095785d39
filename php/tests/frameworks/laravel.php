<?php
// Laravel's cache locks, with our provider.

declare(strict_types=1);

require __DIR__ . '/common.php';
foreach (['Collections', 'Support'] as $room) {
    require "$framework/usr/share/php/Illuminate/$room/helpers.php";
}

use Illuminate\Contracts\Cache\LockTimeoutException;
use Tagsweep\Bridge\LaravelLockProvider;

$provider = new LaravelLockProvider($dsn, 'app:');
$a = $provider->lock('job', 30);
$b = $provider->lock('job', 30);
check('it is Laravel\'s', $a instanceof Illuminate\Cache\Lock && $a instanceof Illuminate\Contracts\Cache\Lock);
check('get', $a->get() === true && abs($redis->pttl('lock:app:job') - 30_000) < 2_000);
check('held', $b->get() === false && $a->isLocked());
check('only the owner releases', $b->release() === false && $a->isOwnedByCurrentProcess() && !$b->isOwnedByCurrentProcess());
check('release', $a->release() === true && $redis->exists('lock:app:job') === 0);
check('get with a callback', $b->get(fn () => 42) === 42 && $redis->exists('lock:app:job') === 0);
try {
    $b->get(fn () => throw new DomainException());
} catch (DomainException) {
    check('a callback that throws', $redis->exists('lock:app:job') === 0);
}
$a->get();
$begun = microtime(true);
$waiting = elsewhere('$lock = (new Tagsweep\Bridge\LaravelLockProvider($dsn, "app:"))->lock("job", 30);
    try { $lock->block(1); } catch (Illuminate\Contracts\Cache\LockTimeoutException) { echo "timeout"; }');
check('block and its timeout', $waiting === 'timeout' && microtime(true) - $begun < 3);
$waiter = waiting($redis, 'app:job', '$lock = (new Tagsweep\Bridge\LaravelLockProvider($dsn, "app:"))->lock("job", 30);
    echo $lock->block(20, fn () => json_encode([true, microtime(true)]));');
$released = microtime(true);
$a->release();
[$had, $when] = json_decode(ended($waiter));
check('block is woken', $had && $when - $released < 0.8);
printf("woken after %.1f ms\n", ($when - $released) * 1e3);
check('block gave it back', $redis->exists('lock:app:job') === 0);
check('block when it is free', $a->block(1) === true);

$again = (new LaravelLockProvider($dsn, 'app:', ['timeout' => 0.5]))->lock('again', 30);
$again->get();
$redis->config('SET', 'min-replicas-to-write', '1');
check('a release that is refused', thrown(fn () => $again->release()) !== null);
$redis->config('SET', 'min-replicas-to-write', '0');
check('is tried again', $again->release() === true && $redis->exists('lock:app:again') === 0);

$owner = $a->owner();
unset($a);
check('it outlives its object', $redis->get('lock:app:job') === $owner);
$there = elsewhere('$lock = (new Tagsweep\Bridge\LaravelLockProvider($dsn, "app:"))->restoreLock("job", $argv[3]);
    echo json_encode([$lock->isOwnedByCurrentProcess(), $lock->refresh(60), $lock->isOwnedBy($argv[3]), $lock->release()]);', $owner);
check('restoreLock in another process', $there === '[true,true,true,true]' && $redis->exists('lock:app:job') === 0);
check('a stale owner releases nothing', $provider->restoreLock('job', $owner)->release() === false);

$b->get();
$provider->lock('job')->forceRelease();
check('forceRelease', $redis->exists('lock:app:job') === 0 && $b->isOwnedByCurrentProcess() === false);
$endless = $provider->lock('endless');
$endless->get();
check('0 seconds are long, not for ever', $redis->pttl('lock:app:endless') > 86_000_000);
$endless->refresh(0);
check('refresh makes no lock permanent', $redis->pttl('lock:app:endless') > 86_000_000);
$endless->refresh(10);
check('refresh', abs($redis->pttl('lock:app:endless') - 10_000) < 1_000 && $endless->release());
$short = $provider->lock('short', 0.2);
$short->get();
check('expiry', $provider->lock('short', 5)->block(2) === true && $short->release() === false);
$own = $provider->lock('own', 30);
check('nobody owns what is free', $own->isOwnedBy(null) && $own->get() && !$own->isOwnedBy(null) && $own->isOwnedBy($own->owner()));
check('got twice', $own->get() === false && $provider->lock('own', 30)->get() === false);
$begun = microtime(true);
try {
    $provider->lock('own', 30)->block(1);
} catch (LockTimeoutException $e) {
    $waited = microtime(true) - $begun;
    check('blocked by itself, for its time', str_contains($e->getMessage(), 'app:own') && $waited >= 1.0 && $waited < 3.0);
}
// The other process releases when a question of ours has been and is over.
$handed = started('$asked = fn (): int => (int) substr($redis->info("commandstats")["cmdstat_evalsha"], strlen("calls="));
    for ($before = $asked(); $asked() < $before + 2;) {
        usleep(1_000);
    }
    echo json_encode((new Tagsweep\Bridge\LaravelLockProvider($dsn, "app:"))->restoreLock("own", $argv[3])->release());', $own->owner());
$next = $provider->lock('own', 30)->betweenBlockedAttemptsSleepFor(10);
check('blocked by what it handed on', $next->block(20) === true && ended($handed) === 'true' && $next->release());
check('a blocking callback that throws', (function () use ($own, $redis) {
    try {
        return $own->block(1, fn () => throw new DomainException());
    } catch (DomainException) {
        return $redis->exists('lock:app:own') === 0;
    }
})());
$other = $provider->restoreLock('own', 'other_owner');
$own->get();
check('an alien owner sees who has it', $other->isOwnedBy($own->owner()) && !$other->isOwnedByCurrentProcess() && $own->release());
check('an owner of somebody else\'s making', $provider->lock('job', 5, 'user:5')->release() === false);
$renewed = (new LaravelLockProvider($dsn, 'app:', ['renew' => true]))->lock('renewed', 0.6);
check('a lost lease is an answer', $renewed->get(function () use ($redis, $renewed) {
    $redis->set('lock:app:renewed', 'thief');
    while ($renewed->isOwnedByCurrentProcess()) {
        usleep(5_000);
    }

    return 42;
}) === 42 && $renewed->release() === false);
check('an owner that is none', $provider->restoreLock('job', 'nonsense')->release() === false);
check('numbers as configurations have them', $provider->lock('text', '10')->get() && abs($redis->pttl('lock:app:text') - 10_000) < 1_000);
check('an owner that is a number', $provider->lock('text', 5, 77)->release() === false);

/** Connections of Laravel to one server, each to a database of its own. */
final class Connections implements Illuminate\Contracts\Redis\Factory
{
    public const DATABASES = ['default' => 0, 'cache' => 1, 'locks' => 2];

    public function __construct(private readonly string $socket)
    {
    }

    public function redis(string $name): Redis
    {
        $redis = new Redis();
        $redis->connect($this->socket);
        $redis->select(self::DATABASES[$name]);

        return $redis;
    }

    public function connection($name = null)
    {
        return (new Illuminate\Redis\Connections\PhpRedisConnection($this->redis($name)))->setName($name);
    }
}

/** As much of an application as a cache needs. */
final class App extends ArrayObject
{
    public function bound(string $abstract): bool
    {
        return isset($this[$abstract]);
    }
}

$connections = new Connections(substr($dsn, strlen('unix://')));
$cache = new Illuminate\Cache\Repository(new Tagsweep\Bridge\LaravelStore($connections, 'cache'));
$prefix = $cache->getStore()->getPrefix();
$locked = $cache->lock('job', 10);
check('Cache::lock', $locked instanceof Tagsweep\Bridge\LaravelLock && $locked->get() && $redis->exists("lock:{$prefix}job") === 1);
check('its waiters wait in line', thrown(fn () => $cache->lock('job', 10)->block(0)) === LockTimeoutException::class);
check('Cache::restoreLock', $cache->restoreLock('job', $locked->owner())->release() && $redis->exists("lock:{$prefix}job") === 0);
check('its cache is Laravel\'s', $cache->put('entry', 42, 60) && (int) $cache->get('entry') === 42 && $redis->exists("{$prefix}entry") === 1);

/** What a store of the cache's configuration leaves behind, by connection, and what it says of itself. */
$traces = function (string $driver, array $config) use ($connections): array {
    $connections->redis('default')->flushAll();
    $settings = new ArrayObject(['cache.prefix' => 'app_cache', 'cache.stores.tested' => ['driver' => $driver] + $config]);
    $manager = new Illuminate\Cache\CacheManager(new App(['config' => $settings, 'redis' => $connections]));
    $manager->extend('tagsweep', fn ($app, $config) => $manager->repository(Tagsweep\Bridge\LaravelStore::make($app, $config)));
    $cache = $manager->store('tested');
    $lock = $cache->lock('job', 10);
    $traces = [$cache->getStore()->getPrefix(), $cache->put('entry', 42, 60), $lock->get(), $lock->getConnectionName()];
    foreach (array_keys(Connections::DATABASES) as $name) {
        // Our locks have a room of their own, and a fence.
        $traces[$name] = preg_filter('/^(lock:)?(?=\w)/', '', $connections->redis($name)->keys('*'));
        sort($traces[$name]);
    }

    return $traces;
};
foreach ([[], ['connection' => 'cache'], ['connection' => 'cache', 'lock_connection' => 'locks'], ['prefix' => 'own']] as $config) {
    check('as Laravel makes its store: ' . json_encode($config), $traces('tagsweep', $config) === $traces('redis', $config));
}

/** A store of this configuration. */
$store = function (array $config) use ($connections) {
    $settings = new ArrayObject(['cache.prefix' => 'app']);

    return Tagsweep\Bridge\LaravelStore::make(new App(['config' => $settings, 'redis' => $connections]), $config);
};
$long = $store(['prefix' => '', 'lock_for_ever' => '1000000', 'lock_server' => ''])->lock('long');
check('until released is as long as configured', $long->get() && $redis->pttl('lock:long') > 999_000_000 && $long->release());
$elsewhere = $store(['prefix' => '', 'lock_server' => ['path' => substr($dsn, strlen('unix://')), 'database' => 9], 'lock_options' => ['prefix' => 'own:']]);
$lock = $elsewhere->lock('job', 10);
$redis->select(9);
check('the server of the locks can be another', $lock->get() && $redis->exists('own:lock:job') === 1 && $lock->getConnectionName() === null);
check('and its owner is known there', $elsewhere->restoreLock('job', $lock->owner())->release() && $redis->exists('own:lock:job') === 0);
$redis->select(0);

$refused = static fn (...$given): bool => thrown(fn () => new LaravelLockProvider(...$given)) === Tagsweep\Exception\InvalidArgumentException::class;
check('what is wrong is told of at once', $refused('nonsense') && $refused($redis, '', ['renw' => true]) && $refused($dsn, '', ['wait' => -1]));
$secret = new LaravelLockProvider('redis://app:canary@127.0.0.1:1', 'app:');
$held = $provider->lock('secret', 10);
$held->get();
ob_start();
foreach ([$secret, $secret->lock('job', 1)] as $object) {
    var_dump($object, (array) $object);
    print_r((array) $object);
    var_export($object);
}
var_dump($held);
$dumps = ob_get_clean();
check('no password in a dump', !str_contains($dumps, 'canary'));
check('nor what proves ownership', !str_contains($dumps, $held->owner()) && $held->release());
check('nor stored', thrown(fn () => serialize($secret)) === LogicException::class && thrown(fn () => serialize($secret->lock('job', 1))) === LogicException::class);
echo "done\n";
