<?php
// symfony/lock itself, with our store: its waiting, refresh, conflict and expiry semantics.

declare(strict_types=1);

require __DIR__ . '/common.php';

use Symfony\Component\Lock\Exception\InvalidTtlException;
use Symfony\Component\Lock\Exception\LockAcquiringException;
use Symfony\Component\Lock\Exception\LockConflictedException;
use Symfony\Component\Lock\Exception\LockExpiredException;
use Symfony\Component\Lock\Key;
use Symfony\Component\Lock\LockFactory;
use Symfony\Component\Lock\Lock;
use Symfony\Component\Lock\Store\CombinedStore;
use Symfony\Component\Lock\Strategy\UnanimousStrategy;
use Tagsweep\Bridge\SymfonyLockStore;

$store = new SymfonyLockStore($dsn, 300.0);
$factory = new LockFactory($store);

$a = $factory->createLock('job', 30);
$b = $factory->createLock('job', 30);
check('acquire', $a->acquire() && $a->isAcquired());
check('the key is tagsweep\'s, for the lock\'s TTL', abs($redis->pttl('lock:job') - 30_000) < 2_000);
check('conflict', !$b->acquire() && !$b->isAcquired());
check('acquiring twice keeps it', $a->acquire());
$b->release();
check('releasing another\'s lock does nothing', $a->isAcquired());
check('remaining lifetime', $a->getRemainingLifetime() > 28 && $a->getRemainingLifetime() <= 30);
$a->refresh(100);
check('refresh', abs($redis->pttl('lock:job') - 100_000) < 2_000 && $a->getRemainingLifetime() > 90);
$a->release();
check('release', $redis->exists('lock:job') === 0 && !$a->isAcquired() && $b->acquire());
check('a conflict at refresh', thrown(fn () => $a->refresh()) !== null && $b->isAcquired());
$b->release();

check('no TTL of nothing', thrown(fn () => new SymfonyLockStore($dsn, 0.0)) === InvalidTtlException::class);
$key = new Key('ttl');
$store->save($key);
check('no refresh to nothing', thrown(fn () => $store->putOffExpiration($key, 0.0)) === InvalidTtlException::class);
$store->delete($key);
check('delete', !$store->exists($key));
$one = new Key('two');
$two = new Key('two');
$store->save($one);
check('keys of one resource are two contenders', thrown(fn () => $store->save($two)) === LockConflictedException::class && $store->exists($one) && !$store->exists($two));
$store->save($one);
$store->delete($two);
check('only the owner deletes', $store->exists($one));
$store->delete($one);
$store->save($two);
check('free after its owner deleted it', $store->exists($two));
$store->delete($two);

$stores = array_map(fn ($prefix) => new SymfonyLockStore($dsn, 300.0, ['prefix' => $prefix]), ['a:', 'b:', 'c:']);
$all = (new LockFactory(new CombinedStore($stores, new UnanimousStrategy())))->createLock('all', 30);
$keys = ['a:lock:all', 'b:lock:all', 'c:lock:all'];
check('several stores, one key', $all->acquire() && $redis->exists($keys) === 3);
$all->release();
check('each store gives its own lock back', $redis->exists($keys) === 0);

$short = $factory->createLock('short', 1);
check('a short lock', $short->acquire());
while ($short->isAcquired()) {
    usleep(5_000);
}
check('expiry', $short->isExpired() && $factory->createLock('short', 5)->acquire());
$late = new Key('late');
$late->reduceLifetime(0.0);
check('a lock that is stored too late', thrown(fn () => $store->save($late)) === LockExpiredException::class);
check('and nothing of it stays', $redis->exists('lock:late') === 0);

$auto = $factory->createLock('auto', 30);
$auto->acquire();
unset($auto);
check('released by its destructor', $redis->exists('lock:auto') === 0);
$kept = $factory->createLock('kept', 30, false);
$kept->acquire();
unset($kept);
check('kept without automatic release', $redis->exists('lock:kept') === 1);

$key = new Key('handed');
$lock = new Lock($key, $store, 30, false);
$lock->acquire();
$there = elsewhere('$key = unserialize(base64_decode($argv[3]));
    $lock = new Symfony\Component\Lock\Lock($key, new Tagsweep\Bridge\SymfonyLockStore($dsn), 60, false);
    echo json_encode([$lock->isAcquired(), $lock->refresh(), $lock->isAcquired()]);
    $lock->release();', base64_encode(serialize($key)));
check('a serialised key works in another process', $there === '[true,null,true]' && $redis->exists('lock:handed') === 0);

$held = $factory->createLock('wait', 30);
$held->acquire();
$waiter = waiting($redis, 'wait', '$factory = new Symfony\Component\Lock\LockFactory(new Tagsweep\Bridge\SymfonyLockStore($dsn));
    $lock = $factory->createLock("wait", 30);
    $had = $lock->acquire(true);
    echo json_encode([$had, microtime(true), $lock->getRemainingLifetime() > 28]);');
$released = microtime(true);
$held->release();
[$had, $when, $whole] = json_decode(ended($waiter));
check('acquire(true) waits and is woken', $had && $whole && $when - $released < 0.8);
printf("woken after %.1f ms\n", ($when - $released) * 1e3);

$dead = new LockFactory(new SymfonyLockStore('redis://127.0.0.1:1'));
check('a server that is not there', thrown(fn () => $dead->createLock('x', 5)->acquire()) === LockAcquiringException::class);
$renewed = new LockFactory(new SymfonyLockStore($dsn, 2.0, ['renew' => true]));
$lock = $renewed->createLock('renewed', null);
$lock->acquire();
usleep(2_500_000);
check('renewed while it lives', $lock->isAcquired());
$lock->release();
$lock = (new LockFactory(new SymfonyLockStore($dsn, 300.0, ['renew' => true])))->createLock('shorter', 2);
$lock->acquire();
usleep(2_500_000);
check('renewed with the TTL of the lock', $redis->exists('lock:shorter') === 1 && $redis->pttl('lock:shorter') <= 2_000);
check('what is renewed has not expired', $lock->isAcquired() && !$lock->isExpired() && $lock->getRemainingLifetime() > 0.5);
$lock->release();
$again = (new LockFactory(new SymfonyLockStore($dsn, 300.0, ['timeout' => 0.5])))->createLock('again', 30, false);
$again->acquire();
$redis->config('SET', 'min-replicas-to-write', '1');
check('a release that is refused', thrown(fn () => $again->release()) !== null);
$redis->config('SET', 'min-replicas-to-write', '0');
check('is tried again', $again->isAcquired() && thrown(fn () => $again->release()) === null && $redis->exists('lock:again') === 0);
$key = new Key('abort');
$store->save($key);
check('what expired while it was refreshed is gone', thrown(fn () => $store->putOffExpiration($key, 1e-6)) === Symfony\Component\Lock\Exception\LockExpiredException::class && $redis->exists('lock:abort') === 0);
$path = substr($dsn, strlen('unix://'));
foreach (["unix://$path?db=0", ['path' => $path], $redis] as $way => $spelling) {
    $key = new Key('spelt');
    (new SymfonyLockStore($dsn))->save($key);
    $other = new SymfonyLockStore($spelling);
    $ours = $other->exists($key);
    $other->delete($key);
    check("one server, told in another way ($way)", $ours && $redis->exists('lock:spelt') === 0);
}
$port = $redis->config('GET', 'port')['port'];
$key = new Key('far');
$store->save($key);
$there = elsewhere('$key = unserialize(base64_decode($argv[4]));
    $lock = new Symfony\Component\Lock\Lock($key, new Tagsweep\Bridge\SymfonyLockStore("redis://127.0.0.1:$argv[3]"), 60, false);
    echo json_encode([$lock->isAcquired(), $lock->refresh(), $lock->acquire(), $lock->isAcquired()]);
    $lock->release();
    echo json_encode($lock->isAcquired());', $port, base64_encode(serialize($key)));
check('a socket here, a port there', $there === '[true,null,true,true]false' && $redis->exists('lock:far') === 0 && !$store->exists($key));
[$one, $two] = $stores;
$key = new Key('apart');
$one->save($key);
check('another server\'s owner is none', !$two->exists($key) && thrown(fn () => $two->putOffExpiration($key, 5.0)) === LockConflictedException::class);
$two->delete($key);
check('and stays another\'s', $redis->exists('a:lock:apart') === 1 && $one->exists($key));
$two->save($key);
$one->delete($key);
check('each with its own', !$one->exists($key) && $two->exists($key) && $redis->exists(['a:lock:apart', 'b:lock:apart']) === 1);
$two->delete($key);
$key = new Key('early');
$early = new Redis();
$store = new SymfonyLockStore($early);
$early->connect($path);
$store->save($key);
check('a store before its connection', $store->exists($key) && $redis->exists('lock:early') === 1);
$refused = static fn (...$given): bool => thrown(fn () => new SymfonyLockStore(...$given)) === Tagsweep\Exception\InvalidArgumentException::class;
check('what is wrong is told of at once', $refused('nonsense') && $refused($early, 300, ['renw' => true]) && $refused($dsn, 300, ['wait' => -1]));
ob_start();
$secret = new SymfonyLockStore('redis://app:canary@127.0.0.1:1');
var_dump($secret, (array) $secret);
var_export($secret);
check('no password in a dump', !str_contains(ob_get_clean(), 'canary'));
echo "done\n";
