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
check('block is woken', $had && $when - $released < 0.1);
printf("woken after %.1f ms\n", ($when - $released) * 1e3);
check('block gave it back', $redis->exists('lock:app:job') === 0);
check('block when it is free', $a->block(1) === true);

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
try {
    $provider->lock('own', 30)->block(1);
} catch (LockTimeoutException $e) {
    check('blocked by itself', str_contains($e->getMessage(), 'app:own') && $own->release());
}
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

final class Connections implements Illuminate\Contracts\Redis\Factory
{
    public function __construct(private readonly Redis $redis)
    {
    }

    public function connection($name = null)
    {
        return new Illuminate\Redis\Connections\PhpRedisConnection($this->redis);
    }
}
$cache = new Illuminate\Cache\Repository(new Tagsweep\Bridge\LaravelStore(new Connections($redis), 'cache'));
$prefix = $cache->getStore()->getPrefix();
$locked = $cache->lock('job', 10);
check('Cache::lock', $locked instanceof Tagsweep\Bridge\LaravelLock && $locked->get() && $redis->exists("lock:{$prefix}job") === 1);
check('its waiters wait in line', thrown(fn () => $cache->lock('job', 10)->block(0)) === LockTimeoutException::class);
check('Cache::restoreLock', $cache->restoreLock('job', $locked->owner())->release() && $redis->exists("lock:{$prefix}job") === 0);
check('its cache is Laravel\'s', $cache->put('entry', 42, 60) && (int) $cache->get('entry') === 42 && $redis->exists("{$prefix}entry") === 1);

$secret = new LaravelLockProvider('redis://app:canary@127.0.0.1:1', 'app:');
ob_start();
var_dump($secret, $secret->lock('job', 1));
check('no password in a dump', !str_contains(ob_get_clean(), 'canary'));
check('nor stored', thrown(fn () => serialize($secret)) === LogicException::class && thrown(fn () => serialize($secret->lock('job', 1))) === LogicException::class);
echo "done\n";
