<?php

declare(strict_types=1);

use PHPUnit\Framework\TestCase;
use Tagsweep\DistributedLock;
use Tagsweep\Exception\ConnectionException;
use Tagsweep\Exception\LockConflictedException;
use Tagsweep\Exception\LockLostException;
use Tagsweep\Exception\ReentrantLockException;

/** A lease over time: waited for, renewed, lost, handed to another process. */
final class LockLifeTest extends TestCase
{
    private Server $server;
    private Redis $redis;
    private string $dsn;

    protected function setUp(): void
    {
        $this->server = new Server();
        $this->redis = $this->server->redis();
        $this->dsn = $this->server->dsn();
        // Whoever leaves the line has a moment for it: enough to say so once, be the server slow.
        $this->redis->script('load', file_get_contents(dirname(__DIR__, 2) . '/src/scripts/leave.lua'));
    }

    private function lock(int|float $seconds = 30, mixed ...$options): DistributedLock
    {
        return new DistributedLock($this->dsn, 'job', $seconds, $options);
    }

    /** A process that waits for the lock and tells when it had it. */
    private function waiter(float $wait, string $then = ''): Run
    {
        $before = $this->redis->zCard('{lock:job}:waiters');
        $run = Run::code("\$lock = new Tagsweep\\DistributedLock('{$this->dsn}', 'job', 30);
            \$had = \$lock->acquireWithin($wait);
            echo json_encode([\$had, microtime(true)]), \"\\n\"; $then");
        $end = microtime(true) + 10;
        while ($this->redis->zCard('{lock:job}:waiters') === $before) {
            self::assertLessThan($end, microtime(true), 'nobody waits');
        }

        return $run;
    }

    public function testWaitersAreServedInOrderAndAtOnce(): void
    {
        $lock = $this->lock();
        self::assertTrue($lock->acquire());
        $waiters = [$this->waiter(20), $this->waiter(20), $this->waiter(20)];
        $released = microtime(true);
        self::assertTrue($lock->release());
        $before = $released;
        foreach ($waiters as $waiter) {
            [$status, $output, $errors] = $waiter->end();
            self::assertSame([0, ''], [$status, $errors]);
            [$had, $when] = json_decode($output);
            self::assertTrue($had);
            self::assertGreaterThan($before, $when);
            $before = $when;
        }
        self::assertLessThan($released + 1.7, $before, 'nobody comes to it by looking, every 0.9 s');
        self::assertSame(0, $this->redis->exists('lock:job', '{lock:job}:waiters', '{lock:job}:baton'));
    }

    public function testAWaitEndsInTimeAndLeavesNothing(): void
    {
        $this->redis->set('lock:job', 'foreign');
        $other = $this->lock();
        $begun = microtime(true);
        self::assertFalse($other->acquireWithin(0.3));
        self::assertFalse($other->block(0.01));
        $waited = microtime(true) - $begun;
        self::assertGreaterThanOrEqual(0.31, $waited);
        self::assertLessThan(0.9, $waited, 'not until the next look');
        self::assertSame(0, $this->redis->exists('{lock:job}:waiters'));
    }

    /** Killed or stopped, a waiter costs the others at most two seconds. */
    public function testADeadWaiterAndAStoppedOneAreNotWaitedFor(): void
    {
        $lock = $this->lock();
        $lock->acquire();
        $killed = $this->waiter(30);
        $stopped = $this->waiter(30);
        $last = $this->waiter(30);
        $killed->signal(SIGKILL);
        $killed->end();
        $stopped->signal(SIGSTOP);
        $released = microtime(true);
        $lock->release();
        [, $output] = $last->end();
        [$had, $when] = json_decode($output);
        self::assertTrue($had);
        self::assertLessThan(2.0, $when - $released);
        $stopped->signal(SIGCONT);
        self::assertTrue(json_decode($stopped->end()[1])[0], 'it takes its turn later');
    }

    public function testAFatalErrorInAHandlerEndsAWaitAndTheScript(): void
    {
        $redis = $this->server->redis();
        $redis->set('lock:job', 'somebody');
        $run = Run::code("pcntl_async_signals(true); pcntl_signal(SIGUSR1, fn () => trigger_error('mine', E_USER_ERROR));
            \$lock = new Tagsweep\\DistributedLock('{$this->dsn}', 'job', 30);
            echo \"waiting\\n\"; \$lock->acquireWithin(20); echo 'went on';");
        $run->awaitLine('waiting');
        Run::until('it stands in line', fn () => $redis->zCard('{lock:job}:waiters') === 1);
        $run->signal(SIGUSR1);
        [$status, $output, $errors] = $run->end();
        self::assertSame([255, ''], [$status, trim($output)], $errors);
        self::assertSame(0, $redis->zCard('{lock:job}:waiters'));
    }

    public function testWhatAHandlerThrowsWhileALockIsMadeGoesItsWay(): void
    {
        foreach (["throw new Exception('enough');" => [0, 'enough'], 'exit(143);' => [143, '']] as $handler => $end) {
            $run = Run::code("pcntl_async_signals(true); pcntl_signal(SIGUSR1, function () { $handler });
                class Asked extends Redis {
                    public function rawCommand(\$command, ...\$more): mixed {
                        posix_kill(getmypid(), SIGUSR1);
                        return parent::rawCommand(\$command, ...\$more);
                    }
                }
                \$redis = new Asked(); \$redis->connect('{$this->server->socket}');
                try { new Tagsweep\\DistributedLock(\$redis, 'job'); echo 'made'; }
                catch (Exception \$e) { echo \$e->getMessage(); }");
            self::assertSame([...$end, ''], $run->end());
        }
    }

    public function testASignalEndsAWait(): void
    {
        $lock = $this->lock();
        $lock->acquire();
        $waiter = $this->waiter(30);
        $waiter->signal(SIGTERM);
        self::assertSame(-SIGTERM, $waiter->end()[0]);
        self::assertSame(0, $this->redis->exists('{lock:job}:waiters'));
        $code = "pcntl_async_signals(true); pcntl_signal(SIGUSR1, function () { throw new Exception('enough'); });
            \$lock = new Tagsweep\\DistributedLock('{$this->dsn}', 'job');
            try { \$lock->acquireWithin(30); } catch (Exception \$e) { echo \$e->getMessage(); }";
        $waiter = Run::code($code);
        Run::until('it waits', fn () => $this->redis->zCard('{lock:job}:waiters') === 1);
        $waiter->signal(SIGUSR1);
        self::assertSame([0, 'enough', ''], $waiter->end());
        self::assertSame(0, $this->redis->exists('{lock:job}:waiters'));
    }

    public function testRenewalGoesOnWhilePhpSleepsAndComputes(): void
    {
        $lock = $this->lock(2, renew: true);
        self::assertTrue($lock->acquire());
        usleep(2_500_000);
        self::assertTrue($lock->isAcquired());
        for ($end = microtime(true) + 2.5; microtime(true) < $end;) {
        }
        self::assertTrue($lock->isAcquired() && $lock->verify());
        self::assertTrue($lock->release());
        self::assertGreaterThanOrEqual(3, $lock->stats()['renewed']);
        usleep(800_000);
        self::assertSame(0, $this->redis->exists('lock:job'), 'no renewal after the release');
    }

    /**
     * @testWith ["extend"]
     *           ["release"]
     *           ["verify"]
     *           ["acquire"]
     *           ["synchronized"]
     */
    public function testALeaseLostMeanwhileIsToldByTheNextOperation(string $first): void
    {
        $lock = $this->lock(2, renew: true);
        $operations = [
            'extend' => fn () => $lock->extend(),
            'release' => fn () => $lock->release(),
            'verify' => fn () => $lock->verify(),
            'acquire' => fn () => $lock->acquire(),
            'synchronized' => fn () => $lock->synchronized(fn () => self::fail('without the lock')),
        ];
        $lock->acquire();
        $this->redis->set('lock:job', 'thief');
        Run::until('it is known', fn () => !$lock->isAcquired(), 1.9);
        try {
            $operations[$first]();
            self::fail('no exception');
        } catch (LockLostException $e) {
            self::assertStringContainsString('somebody else has it', $e->getMessage());
        }
        foreach (['extend', 'release', 'verify', 'acquire'] as $operation) {
            self::assertFalse($operations[$operation](), 'it is told once');
        }
        self::assertSame('thief', $this->redis->get('lock:job'));
        $this->redis->del('lock:job');
        self::assertTrue($lock->acquire(), 'it can be taken again');
        self::assertTrue($lock->release());
        self::assertSame(1, $lock->stats()['lost']['stolen']);
    }

    /**
     * @testWith ["extend", true]
     *           ["release", true]
     *           ["verify", true]
     *           ["extend", false]
     *           ["release", false]
     *           ["verify", false]
     */
    public function testOfARenewedLeaseALossIsToldByWhateverFindsIt(string $operation, bool $renew): void
    {
        $lock = $this->lock(30, renew: $renew);
        $lock->acquire();
        $this->redis->set('lock:job', 'thief');
        self::assertTrue($lock->isAcquired(), 'nobody has looked yet');
        try {
            self::assertFalse($lock->$operation());
            self::assertFalse($renew, 'no exception');
        } catch (LockLostException $e) {
            self::assertTrue($renew, $e->getMessage());
            self::assertStringContainsString('was lost', $e->getMessage());
        }
        self::assertFalse($lock->isAcquired());
        self::assertFalse($lock->$operation(), 'it is told once');
    }

    public function testWhoeverWasStoppedForTooLongIsToldOfTheLossByWhateverComesNext(): void
    {
        foreach (['extend()', 'release()', 'verify()', 'acquire()', 'acquireWithin(1)', 'synchronized(fn () => 1)'] as $operation) {
            $code = <<<PHP
                \$lock = new Tagsweep\DistributedLock('unix://' . getenv('SOCKET'), 'job', 0.5, ['renew' => true]);
                \$lock->acquire();
                echo "ready\n";
                // Its own clock tells it at once when it goes on; the thread that renews has not looked yet, or has.
                while (\$lock->isAcquired());
                try {
                    \$lock->$operation;
                    echo "nothing\n";
                } catch (Tagsweep\Exception\LockLostException \$e) {
                    echo "told\n";
                }
                PHP;
            putenv("SOCKET={$this->server->socket}");
            $run = Run::code($code);
            $run->awaitLine('ready');
            $run->signal(SIGSTOP);
            Run::until('it expires', fn () => $this->redis->exists('lock:job') === 0);
            $this->redis->set('lock:job', 'thief');
            $run->signal(SIGCONT);
            self::assertStringContainsString('told', $run->end()[1], $operation);
            $this->redis->del('lock:job');
        }
    }

    public function testMaxHoldEndsARenewedLease(): void
    {
        $lock = $this->lock(2, renew: true, maxHold: 2.5);
        $begun = microtime(true);
        $lock->acquire();
        Run::until('it ends', fn () => $this->redis->exists('lock:job') === 0);
        $held = microtime(true) - $begun;
        self::assertGreaterThan(2.4, $held);
        self::assertLessThan(3.9, $held, 'the last renewal was for what was left, not for a TTL');
        Run::until('it is known', fn () => !$lock->isAcquired(), 1);
    }

    public function testAChildNeitherRenewsNorReleasesAndHasLocksOfItsOwn(): void
    {
        $code = <<<'PHP'
            $dsn = 'unix://' . getenv('SOCKET');
            $lock = new Tagsweep\DistributedLock($dsn, 'job', 2, ['renew' => true]);
            $lock->acquire();
            $pid = pcntl_fork();
            if ($pid === 0) {
                $own = new Tagsweep\DistributedLock($dsn, 'own', 2, ['renew' => true]);
                $mine = [$lock->isAcquired(), $lock->release(), $own->acquire()];
                usleep(2_500_000);
                echo json_encode([...$mine, $own->isAcquired(), $own->release()]), "\n";
                exit(0);
            }
            pcntl_waitpid($pid, $status);
            echo json_encode([$lock->isAcquired(), $lock->verify(), $lock->release()]), "\n";
            PHP;
        putenv("SOCKET={$this->server->socket}");
        self::assertSame([0, "[false,false,true,true,true]\n[true,true,true]\n", ''], Run::code($code)->end());
    }

    /** @return iterable<string, array{string}> */
    public static function endings(): iterable
    {
        yield 'end' => [''];
        yield 'exit' => ['exit(0);'];
        yield 'fatal error' => ['undefined_function();'];
        yield 'uncaught exception' => ['throw new Exception("x");'];
        yield 'static' => ['class Keep { public static $lock; } Keep::$lock = $lock; exit;'];
        yield 'handled TERM' => ['pcntl_async_signals(true); pcntl_signal(SIGTERM, fn () => exit(143)); posix_kill(getmypid(), SIGTERM); sleep(30);'];
    }

    /** @dataProvider endings */
    public function testARenewedLeaseEndsWithItsProcess(string $ending): void
    {
        $code = "\$lock = new Tagsweep\\DistributedLock('{$this->dsn}', 'job', 1, ['renew' => true]);
            echo (int) \$lock->acquire(), \"\\n\"; usleep(400_000); $ending";
        [, $output] = Run::code($code)->end();
        self::assertStringStartsWith("1\n", $output);
        self::assertSame(0, $this->redis->exists('lock:job'));
    }

    /** @return iterable<string, array{int, string}> */
    public static function signals(): iterable
    {
        foreach (['TERM' => SIGTERM, 'INT' => SIGINT, 'HUP' => SIGHUP] as $name => $signal) {
            yield "$name while it sleeps" => [$signal, 'sleep(30);'];
            yield "$name while it computes" => [$signal, 'while (true) { $x = 1; }'];
        }
    }

    /** @dataProvider signals */
    public function testASignalThatNobodyHandlesGivesTheLockBackAndEndsPhp(int $signal, string $then): void
    {
        $holder = Run::code("\$lock = new Tagsweep\\DistributedLock('{$this->dsn}', 'job', 30, ['renew' => true]);
            echo (int) \$lock->acquire(), \"\\n\"; $then");
        $holder->awaitLine('1');
        $told = microtime(true);
        $holder->signal($signal);
        self::assertSame(-$signal, $holder->end()[0], 'ended by the signal itself');
        self::assertLessThan(3.0, microtime(true) - $told);
        self::assertSame(0, $this->redis->exists('lock:job'));
    }

    public function testARestoredLeaseIsGivenBackAtASignalToo(): void
    {
        $lock = new Tagsweep\DistributedLock($this->dsn, 'job', 30, ['autoRelease' => false]);
        self::assertTrue($lock->acquire());
        $owner = var_export($lock->owner(), true);
        $holder = Run::code("\$lock = Tagsweep\\DistributedLock::restore('{$this->dsn}', 'job', $owner, ['autoRelease' => true]);
            echo (int) \$lock->verify(), \"\\n\"; sleep(30);");
        $holder->awaitLine('1');
        $holder->signal(SIGTERM);
        self::assertSame(-SIGTERM, $holder->end()[0]);
        self::assertSame(0, $this->redis->exists('lock:job'));
    }

    public function testWhoeverWaitsForSomebodyElseEndsWithinASecondOrSo(): void
    {
        $holder = Run::code("\$lock = new Tagsweep\\DistributedLock('{$this->dsn}', 'job', 30, ['renew' => true]);
            [\$here, \$there] = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);
            stream_set_timeout(\$here, 30);
            echo (int) \$lock->acquire(), \"\\n\"; fread(\$here, 1);");
        $holder->awaitLine('1');
        Run::until('it reads', fn () => $holder->state() === 'S', 5);
        $told = microtime(true);
        $holder->signal(SIGTERM);
        self::assertSame(-SIGTERM, $holder->end()[0]);
        self::assertLessThan(3.0, microtime(true) - $told);
    }

    /** The signal comes first, and is looked at when the lock is there already. */
    public function testAWaitThatASignalEndsKeepsNoLock(): void
    {
        $code = "pcntl_async_signals(true);
            pcntl_signal(SIGUSR1, fn () => throw new DomainException('enough'));
            \$lock = new Tagsweep\\DistributedLock('{$this->dsn}', 'job', 30);
            try {
                \$lock->acquireWithin(9);
            } catch (DomainException) {
                echo json_encode(\$lock->isAcquired()), \"\\n\";
            }";
        for ($round = 0; $round < 5; $round++) {
            $holder = new DistributedLock($this->dsn, 'job', 30);
            self::assertTrue($holder->acquire());
            $waiter = Run::code($code);
            Run::until('it waits', fn () => $this->redis->zCard('{lock:job}:waiters') === 1);
            $waiter->signal(SIGUSR1);
            $holder->release();
            self::assertSame([0, "false\n", ''], $waiter->end());
            self::assertSame(0, $this->redis->exists('lock:job'));
        }
    }

    public function testAForkInTheMiddleOfAWaitWaitsNoMore(): void
    {
        $code = "pcntl_async_signals(true);
            \$lock = new Tagsweep\\DistributedLock('{$this->dsn}', 'job', 5, ['waitMode' => getenv('MODE')]);
            \$child = -1;
            pcntl_signal(SIGUSR1, function () use (&\$child) { (\$child = pcntl_fork()) && print(\"forked\\n\"); });
            \$had = \$lock->acquireWithin(9);
            if (\$child === 0) {
                exit(\$had || \$lock->isAcquired() ? 1 : 0);
            }
            pcntl_waitpid(\$child, \$status);
            echo json_encode([\$had, \$lock->verify(), pcntl_wexitstatus(\$status)]), \"\\n\";";
        $asked = fn (): int => (int) substr($this->redis->info('commandstats')['cmdstat_evalsha'] ?? 'calls=0', 6);
        $waits = ['line' => fn () => $this->redis->zCard('{lock:job}:waiters') === 1, 'backoff' => fn () => $asked() > 2];
        foreach ($waits as $mode => $so) {
            putenv("MODE=$mode");
            $this->redis->set('lock:job', 'foreign');
            $this->redis->rawCommand('CONFIG', 'RESETSTAT');
            $waiter = Run::code($code);
            Run::until('it waits', $so);
            $waiter->signal(SIGUSR1);
            $waiter->awaitLine('forked');
            $this->redis->del('lock:job');
            self::assertSame([0, "[true,true,0]\n", ''], $waiter->end(), $mode);
        }
    }

    public function testAForkThatHoldsNothingEndsAtOnce(): void
    {
        $code = "\$lock = new Tagsweep\\DistributedLock('{$this->dsn}', 'job', 30);
            \$lock->acquire();
            [\$here, \$there] = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);
            \$child = pcntl_fork();
            if (\$child === 0) {
                fwrite(\$there, 'x');
                stream_set_timeout(\$here, 9);
                fread(\$here, 1);
                fread(\$here, 1);
                exit(1);
            }
            while (!preg_match('/^State:\\s+S/m', file_get_contents(\"/proc/\$child/status\")) || \$lock->getHolder() === null) {
                usleep(1_000);
            }
            usleep(50_000);
            \$told = microtime(true);
            posix_kill(\$child, SIGTERM);
            pcntl_waitpid(\$child, \$status);
            echo json_encode([pcntl_wtermsig(\$status), microtime(true) - \$told < 1, \$lock->release()]), \"\\n\";";
        self::assertSame([0, "[15,true,true]\n", ''], Run::code($code)->end());
    }

    public function testASilentServerHoldsASignalUpForASecondAtMost(): void
    {
        $holder = Run::code("\$lock = new Tagsweep\\DistributedLock('{$this->dsn}', 'job', 30);
            echo (int) \$lock->acquire(), \"\\n\"; sleep(30);");
        $holder->awaitLine('1');
        $this->server->signal(SIGSTOP);
        $told = microtime(true);
        $holder->signal(SIGTERM);
        self::assertSame(-SIGTERM, $holder->end()[0]);
        $this->server->signal(SIGCONT);
        self::assertLessThan(4.0, microtime(true) - $told);
    }

    public function testAKilledHolderIsReplacedWithinItsTtl(): void
    {
        $holder = Run::code("\$lock = new Tagsweep\\DistributedLock('{$this->dsn}', 'job', 1, ['renew' => true]);
            echo (int) \$lock->acquire(), \"\\n\"; sleep(60);");
        $holder->awaitLine('1');
        $waiter = $this->waiter(10);
        $holder->signal(SIGKILL);
        $killed = microtime(true);
        [, $output] = $waiter->end();
        [$had, $when] = json_decode($output);
        self::assertTrue($had);
        self::assertLessThan(1.7, $when - $killed, 'not by the next look, 1.8 s after it joined');
        $holder->end();
        self::assertSame(1, $this->lock()->stats()['takeovers']);
    }

    public function testAnOwnerHandsItsLeaseToAnotherProcess(): void
    {
        $lock = $this->lock(30, autoRelease: false);
        $lock->acquire();
        $owner = $lock->owner();
        unset($lock);
        self::assertSame($owner, $this->redis->get('lock:job'));
        $restored = DistributedLock::restore($this->dsn, 'job', $owner);
        self::assertFalse($restored->isAcquired(), 'not asked yet');
        self::assertTrue($restored->verify() && $restored->isAcquired());
        $theirs = new class($this->dsn, 'other') extends DistributedLock {
            public string $own = 'theirs';
        };
        $restored = $theirs::restore($this->dsn, 'job', $owner);
        self::assertInstanceOf($theirs::class, $restored);
        self::assertSame(['theirs', true], [$restored->own, $restored->verify()]);
        self::assertEqualsWithDelta(29, $restored->remaining(), 2);
        self::assertTrue($this->lock()->isOwnedBy($owner));
        self::assertFalse($this->lock()->isOwnedBy('x:1|a|1|b'));
        unset($restored);
        self::assertSame($owner, $this->redis->get('lock:job'), 'a restored lock is not released by forgetting it');
        self::assertTrue(DistributedLock::restore($this->dsn, 'job', $owner)->release());
        self::assertFalse(DistributedLock::restore($this->dsn, 'job', $owner)->release());
        $this->expectException(Tagsweep\Exception\InvalidArgumentException::class);
        DistributedLock::restore($this->dsn, 'job', 'nonsense');
    }

    public function testSynchronized(): void
    {
        $lock = $this->lock();
        self::assertSame(42, $lock->synchronized(fn () => $this->redis->exists('lock:job') * 42));
        self::assertSame(0, $this->redis->exists('lock:job'));
        try {
            $lock->synchronized(fn () => throw new DomainException('body'));
            self::fail('no exception');
        } catch (DomainException) {
            self::assertSame(0, $this->redis->exists('lock:job'));
        }
        try {
            self::assertTrue($lock->synchronized(fn () => $lock->release()), 'it may be given up before');
            $lock->synchronized(fn () => $this->redis->set('lock:job', 'thief'));
            self::fail('no exception');
        } catch (LockLostException $e) {
            self::assertStringContainsString('while the body ran', $e->getMessage());
        }
        try {
            $lock->synchronized(fn () => 1, 0.5);
            self::fail('no exception');
        } catch (LockConflictedException) {
            self::assertSame('thief', $this->redis->get('lock:job'));
        }
        self::assertFalse($lock->get(fn () => 1));
        $this->redis->del('lock:job');
        self::assertSame('x', $lock->get(fn () => 'x'));
        self::assertTrue($lock->get());
        self::assertTrue($lock->release());
    }

    public function testWaitingForOneselfIsRefused(): void
    {
        $lock = $this->lock();
        $lock->acquire();
        self::assertFalse($lock->acquire(), 'as the class that it replaces');
        $begun = microtime(true);
        foreach ([
            fn () => $lock->acquireWithin(10),
            fn () => $this->lock()->acquireWithin(10),
            fn () => $lock->synchronized(fn () => 1),
            fn () => $this->lock(30, wait: 10)->acquire(),
        ] as $act) {
            try {
                $act();
                self::fail('no exception');
            } catch (ReentrantLockException $e) {
                self::assertInstanceOf(LogicException::class, $e);
            }
        }
        self::assertLessThan(5.0, microtime(true) - $begun);
        self::assertTrue($lock->release());
        self::assertSame(0, $this->redis->exists('{lock:job}:waiters'));
    }

    public function testWhoHoldsItAndForceRelease(): void
    {
        $lock = $this->lock();
        self::assertNull($lock->getHolder());
        self::assertFalse($lock->isLocked());
        $lock->acquire();
        $holder = $this->lock()->getHolder();
        self::assertSame([$lock->fence(), gethostname(), getmypid()], [$holder['fence'], $holder['host'], $holder['pid']]);
        self::assertEqualsWithDelta(30, $holder['ttl'], 5);
        self::assertEqualsWithDelta(microtime(true), $holder['since'], 5);
        self::assertTrue($this->lock()->forceRelease());
        self::assertFalse($this->lock()->forceRelease());
        self::assertFalse($lock->verify());
        self::assertSame(1, $this->lock()->stats()['lost']['forced']);
        $this->redis->set('lock:job', 'foreign');
        self::assertNull($this->lock()->getHolder()['fence']);
    }

    public function testStatisticsOfAllProcessesAreKept(): void
    {
        for ($i = 0; $i < 3; $i++) {
            Run::code("\$lock = new Tagsweep\\DistributedLock('{$this->dsn}', 'job'); \$lock->acquire(); usleep(20_000); \$lock->release();")->end();
        }
        $lock = $this->lock(5);
        $lock->acquire();
        $this->lock()->acquire();
        Run::code("(new Tagsweep\\DistributedLock('{$this->dsn}', 'job'))->acquireWithin(0.5);")->end();
        $stats = $this->lock()->stats();
        self::assertSame([3, 1, 1], [$stats['acquired'], $stats['held'], $stats['timeouts']]);
        self::assertSame(3, $stats['hold']['count']);
        self::assertGreaterThan(0.02, $stats['hold']['p50']);
        self::assertEquals(5, $stats['ttl']);
    }

    public function testALearnedTtl(): void
    {
        for ($i = 0; $i < 6; $i++) {
            $lock = $this->lock(30, ttl: 'auto');
            $lock->acquire();
            self::assertEqualsWithDelta($i < 5 ? 30 : 10, $lock->remaining(), 5, "round $i");
            $lock->release();
        }
        $this->redis->del('{lock:job}:stats');
        $this->redis->set('{lock:job}:stats', 'poison');
        $lock = $this->lock(30, ttl: 'auto');
        self::assertTrue($lock->acquire());
        self::assertEqualsWithDelta(30, $lock->remaining(), 5);
        self::assertTrue($lock->release());
    }

    public function testAtLeastKeepsTheLockTaken(): void
    {
        $lock = $this->lock(30, atLeast: 2);
        $begun = microtime(true);
        $lock->acquire();
        self::assertTrue($lock->release());
        self::assertFalse($this->lock()->acquire());
        self::assertTrue($this->lock()->acquireWithin(5));
        $taken = microtime(true) - $begun;
        self::assertGreaterThan(1.9, $taken);
        self::assertLessThan(2.7, $taken, 'looks come every 0.9 s, and when its time is over');
    }

    public function testReplicasThatAreNotThereDoNotConfirm(): void
    {
        $lock = $this->lock(30, confirm: 1);
        try {
            $lock->acquire();
            self::fail('no exception');
        } catch (Tagsweep\Exception\ServerException $e) {
            self::assertMatchesRegularExpression('/(0 of 1|in time which) replicas have the grant/', $e->getMessage());
        }
        self::assertSame(0, $this->redis->exists('lock:job'));
    }

    public function testNullStandsForWhatIsNotGivenInFilesThatAreNotStrictToo(): void
    {
        $code = 'class Theirs extends Tagsweep\DistributedLock {
                public function extend(?int $ttl = null): bool { return parent::extend($ttl); }
            }
            $lock = new Theirs($argv[1], "null", 30);
            var_dump($lock->isOwnedBy(null), $lock->acquire(), $lock->extend(), $lock->extend(null), $lock->refresh(null));';
        [$status, $output] = (new Run(['-r', $code, $this->dsn]))->end();
        self::assertSame([0, str_repeat("bool(true)\n", 5)], [$status, $output]);
    }

    public function testAServerThatIsStoppedCostsNoMoreThanTheTimeGiven(): void
    {
        $redis = $this->server->redis();
        $locks = [];
        foreach (['a:', 'b:', 'c:', 'd:'] as $prefix) {
            $locks[] = $lock = new DistributedLock($this->dsn, 'job', 30, ['prefix' => $prefix, 'timeout' => 1]);
            self::assertTrue($lock->acquire());
        }
        $this->server->signal(SIGSTOP);
        try {
            $begun = microtime(true);
            $thrown = null;
            try {
                new DistributedLock($redis, 'job', 30, ['timeout' => 0.5]);
            } catch (ConnectionException $thrown) {
            }
            self::assertNotNull($thrown);
            self::assertLessThan(1.4, microtime(true) - $begun, 'a constructor');
            $begun = microtime(true);
            unset($lock);
            $locks = [];
            self::assertLessThan(2.8, microtime(true) - $begun, 'four destructors');
        } finally {
            $this->server->signal(SIGCONT);
        }
    }
}
