<?php

declare(strict_types=1);

use PHPUnit\Framework\TestCase;
use Tagsweep\Exception\InvalidArgumentException;
use Tagsweep\Exception\LockConflictedException;
use Tagsweep\Exception\ReentrantLockException;
use Tagsweep\Exception\UnprovenMappingException;
use Tagsweep\SweepReport;
use Tagsweep\TagCleanupManager;

final class TagCleanupManagerTest extends TestCase
{
    private const QUICK = ['verify' => 0.01];

    private function fill(Redis $redis): void
    {
        for ($i = 0; $i < 20; $i++) {
            Server::tag($redis, "live$i", 3, 0);
            Server::tag($redis, "mixed$i", 2, 2);
            Server::tag($redis, "orphan$i", 0, 4);
        }
    }

    /** @return iterable<string, array{callable(Server): Redis}> */
    public static function connections(): iterable
    {
        yield 'tcp, password, database' => [function (Server $server): Redis {
            $redis = new Redis();
            $redis->connect('127.0.0.1', $server->port, 1.5);
            $redis->auth('pw');
            $redis->select(7);

            return $redis;
        }];
        yield 'unix socket' => [function (Server $server): Redis {
            $redis = new Redis();
            $redis->connect($server->socket);
            $redis->auth('pw');

            return $redis;
        }];
        yield 'prefix' => [function (Server $server): Redis {
            $redis = new Redis();
            $redis->pconnect('127.0.0.1', $server->port);
            $redis->auth(['default', 'pw']);
            $redis->setOption(Redis::OPT_PREFIX, 'app[1]:*');

            return $redis;
        }];
    }

    /**
     * The design's own usage: its namespace, its command, a container that builds from phpredis.
     *
     * @dataProvider connections
     */
    public function testTheDesignsOwnCodeRunsUnchanged(callable $connect): void
    {
        require_once __DIR__ . '/CacheTagCleanup.php';
        $server = new Server(true, '--requirepass', 'pw');
        $redis = $connect($server);
        $this->fill($redis);
        $container = [
            'cleanup' => fn () => new YourFramework\Cache\TagCleanupManager($redis),
            'command' => fn ($c) => new YourFramework\Console\Commands\CacheTagCleanup($c['cleanup']()),
        ];
        ob_start();
        $container['command']($container)->handle();
        self::assertSame("Cleaned up 20 orphaned cache tags.\n", ob_get_clean());
        for ($i = 0; $i < 20; $i++) {
            self::assertSame(3, $redis->sCard("tag:live$i"));
            self::assertEqualsCanonicalizing(["item:mixed$i:l0", "item:mixed$i:l1"], $redis->sMembers("tag:mixed$i"));
            self::assertSame(5, $redis->exists("item:live$i:l0", "item:live$i:l1", "item:live$i:l2", "item:mixed$i:l0", "item:mixed$i:l1"));
            self::assertSame(0, $redis->exists("tag:orphan$i"));
        }
        Server::tag($redis, 'orphan', 0, 1);
        $redis->set('lock:cache_tag_cleanup', 'another', ['EX' => 60]);
        ob_start();
        $container['command']($container)->handle();
        self::assertSame("Error during cache tag cleanup: Unable to acquire lock for cache tag cleanup.\n", ob_get_clean());
        self::assertSame(1, $redis->exists('tag:orphan'));
    }

    public function testTheReportHasEveryFigure(): void
    {
        $server = new Server();
        $redis = $server->redis();
        $this->fill($redis);
        $redis->set('tag:string', 'x');
        $manager = new TagCleanupManager($redis, 604800, self::QUICK);
        self::assertNull($manager->lastReport());
        $plan = $manager->plan();
        self::assertTrue($plan->dryRun);
        self::assertSame([20, 20, 120], [$plan->tagsRemoved, $plan->tagsPruned, $plan->referencesRemoved]);
        self::assertSame(1, $redis->exists('tag:orphan0'));
        $this->ageAll($redis);
        self::assertSame(20, $manager->cleanup());
        $report = $manager->lastReport();
        self::assertInstanceOf(SweepReport::class, $report);
        self::assertSame(
            [60, 20, 20, 1, 220, 120, true, 'complete'],
            [$report->tagsSeen, $report->tagsRemoved, $report->tagsPruned, $report->tagsSkipped, $report->referencesChecked, $report->referencesRemoved, $report->complete, $report->reason],
        );
        $json = json_decode(json_encode($report), true);
        self::assertSame(
            ['tags_seen', 'tags_removed', 'tags_pruned', 'tags_aged', 'tags_unchanged', 'tags_skipped', 'references_checked', 'references_removed', 'references_skipped', 'references_restored', 'scores_healed', 'entries_invalidated', 'bytes_reclaimed', 'pages', 'duration_s', 'server_s', 'rounds', 'round_p50_s', 'round_p99_s', 'resumed_at', 'removed_before', 'complete', 'reason', 'dry_run', 'entry_prefix', 'warnings', 'samples'],
            array_keys($json),
        );
        $this->expectExceptionMessage('No setter');
        $report->tagsSeen = 1;
    }

    /** On a server without CLIENT NO-TOUCH a look makes a tag young. */
    private function ageAll(Redis $redis): void
    {
        foreach ($redis->keys('tag:*') as $key) {
            if ($redis->type($key) === Redis::REDIS_SET) {
                Server::age($redis, $key, 3600);
            }
        }
    }

    public function testAgedTagsAreInvalidated(): void
    {
        $server = new Server();
        $redis = $server->redis();
        Server::tag($redis, 'used', 2, 0);
        Server::tag($redis, 'aged', 2, 0);
        Server::age($redis, 'tag:aged', 700_000);
        $manager = new TagCleanupManager($redis, 604800, self::QUICK);
        self::assertSame(1, $manager->cleanup());
        self::assertSame(2, $manager->lastReport()->entriesInvalidated);
        self::assertSame(0, $redis->exists('tag:aged', 'item:aged:l0', 'item:aged:l1'));
        self::assertSame(3, $redis->exists('tag:used', 'item:used:l0', 'item:used:l1'));
    }

    public function testAHeldLockIsTheDesignsMessage(): void
    {
        $server = new Server();
        $redis = $server->redis();
        $redis->set('lock:cache_tag_cleanup', 'x');
        $this->expectException(LockConflictedException::class);
        $this->expectExceptionMessage('Unable to acquire lock for cache tag cleanup.');
        (new TagCleanupManager($redis))->cleanup();
    }

    public function testAWrongPrefixLosesNothing(): void
    {
        $server = new Server();
        $redis = $server->redis();
        $this->fill($redis);
        try {
            (new TagCleanupManager($redis, 604800, ['entryPrefix' => 'wrong:'] + self::QUICK))->cleanup();
            self::fail('no error');
        } catch (UnprovenMappingException $e) {
            self::assertStringContainsString('give entryPrefix, or trustMapping if', $e->getMessage());
        }
        self::assertSame(4, $redis->sCard('tag:mixed0'));
        self::assertSame(20, count($redis->keys('tag:orphan*')));
    }

    public function testProgressAndStop(): void
    {
        $server = new Server();
        $redis = $server->redis();
        Server::tag($redis, 'live', 1, 0);
        $redis->sAdd('tag:young', 'item:gone');
        $manager = new TagCleanupManager($redis);
        $seen = [];
        $same = $manager->onProgress(function (SweepReport $report, float $share) use (&$seen, $manager): void {
            if ($share >= 0.99) {
                $seen[] = [$report->tagsSeen, $share];
                $manager->stop();
            }
        });
        self::assertSame($manager, $same);
        $begun = microtime(true);
        self::assertSame(0, $manager->cleanup());
        self::assertLessThan(4.0, microtime(true) - $begun);
        self::assertSame([[2, 0.99]], $seen, "the walk is done, and something waits");
        self::assertSame(['stopped', false], [$manager->lastReport()->reason, $manager->lastReport()->complete]);
        self::assertSame(0, $redis->exists('lock:cache_tag_cleanup'));
    }

    public function testAnExceptionOfTheListenerGoesThrough(): void
    {
        $server = new Server();
        $redis = $server->redis();
        Server::tag($redis, 'live', 1, 0);
        $redis->sAdd('tag:young', 'item:gone');
        $manager = (new TagCleanupManager($redis))->onProgress(fn () => throw new DomainException('mine'));
        try {
            $manager->cleanup();
            self::fail('no exception');
        } catch (DomainException $e) {
            self::assertSame('mine', $e->getMessage());
        }
        self::assertSame(0, $redis->exists('lock:cache_tag_cleanup'));
        $manager->onProgress(fn () => $manager->cleanup());
        $this->expectException(ReentrantLockException::class);
        $this->expectExceptionMessage('running already');
        $manager->cleanup();
    }

    public function testANamespaceThatNoCodeCanNameIsToldOf(): void
    {
        foreach (['A/B', '1a', 'a b', 'A\\\\B'] as $namespace) {
            $told = ['-d', 'log_errors=0', '-d', 'display_errors=1', '-d', 'display_startup_errors=1'];
            [, $output] = (new Run(['-d', "tagsweep.alias_namespace=$namespace", ...$told, '-r', 'echo "there";']))->end();
            self::assertStringContainsString('is no namespace', $output);
            self::assertStringEndsWith('there', $output);
        }
    }

    /** @return iterable<string, array{callable(Redis): mixed, class-string<Throwable>, string}> */
    public static function wrong(): iterable
    {
        yield 'age 0' => [fn ($r) => new TagCleanupManager($r, 0), InvalidArgumentException::class, 'at least 1 second'];
        yield 'negative age' => [fn ($r) => new TagCleanupManager($r, -5), InvalidArgumentException::class, 'at least 1 second'];
        yield 'too old' => [fn ($r) => new TagCleanupManager($r, 16_000_000), InvalidArgumentException::class, '180 days'];
        yield 'unknown option' => [fn ($r) => new TagCleanupManager($r, 1, ['grce' => 1]), InvalidArgumentException::class, 'unknown option "grce"'];
        yield 'unknown layout' => [fn ($r) => new TagCleanupManager($r, 1, ['layout' => 'x']), InvalidArgumentException::class, 'unknown layout'];
        yield 'negative grace' => [fn ($r) => new TagCleanupManager($r, 1, ['grace' => -1]), InvalidArgumentException::class, 'grace'];
        yield 'a fraction of a count' => [fn ($r) => new TagCleanupManager($r, 1, ['maxRemovals' => 1.5]), TypeError::class, 'must be of type int, float given'];
        yield 'a lock without a name' => [fn ($r) => new TagCleanupManager($r, 1, ['lock' => '']), InvalidArgumentException::class, 'must not be empty'];
        yield 'text for a number' => [fn ($r) => new TagCleanupManager($r, 1, ['grace' => 'soon']), TypeError::class, 'must be of type int|float, string given'];
        yield 'wrong server' => [fn ($r) => new TagCleanupManager(17), TypeError::class, 'must be of type Redis|array|string, int given'];
    }

    /** @dataProvider wrong */
    public function testBadInputIsAClearError(callable $act, string $class, string $text): void
    {
        $server = new Server();
        $this->expectException($class);
        $this->expectExceptionMessage($text);
        $act($server->redis());
    }

    public function testEveryOptionIsUnderstoodAndItsBoundsAreKept(): void
    {
        $server = new Server();
        $this->fill($server->redis());
        $options = ['maxLatency' => 0.001, 'effort' => 9, 'memory' => 8 << 20, 'strict' => true, 'durable' => true, 'remember' => 60, 'resume' => false];
        self::assertSame(20, (new TagCleanupManager($server->redis(), 604800, self::QUICK + $options))->cleanup());
        foreach (['maxLatency' => 0, 'effort' => 11, 'memory' => 1000] as $name => $wrong) {
            try {
                new TagCleanupManager($server->redis(), 604800, [$name => $wrong]);
                self::fail("$name $wrong");
            } catch (InvalidArgumentException $e) {
                self::assertStringContainsString($name, $e->getMessage());
            }
        }
    }

    public function testACleanupThatWasCutShortIsGoneOnWith(): void
    {
        $server = new Server();
        $redis = $server->redis();
        for ($i = 0; $i < 2000; $i++) {
            Server::tag($redis, "t$i", 1, 1);
        }
        $first = new TagCleanupManager($redis, 604800, self::QUICK + ['maxRemovals' => 1500, 'grace' => 0]);
        $first->cleanup();
        self::assertSame('max_removals', $first->lastReport()->reason);
        $second = new TagCleanupManager($redis, 604800, self::QUICK + ['grace' => 0]);
        $second->cleanup();
        $report = $second->lastReport();
        self::assertTrue($report->complete);
        self::assertGreaterThan(0, $report->resumedAt);
        self::assertGreaterThan(0, $report->removedBefore);
        self::assertSame(500, $report->referencesRemoved);
        self::assertGreaterThan(0, $report->rounds);
        self::assertGreaterThanOrEqual($report->roundP50, $report->roundP99);
    }

    public function testAPlanShowsWhatWouldGoAndTheListenerTheTimeLeft(): void
    {
        $server = new Server();
        $this->fill($server->redis());
        $server->redis()->eval("redis.call('SET', 'item:1', '') for t = 1, 40000 do redis.call('SADD', 'tag:more' .. t, 'item:1') end");
        $told = [];
        $manager = (new TagCleanupManager($server->redis(), 604800, self::QUICK + ['effort' => 2]))
            ->onProgress(function (SweepReport $report, float $share, ?float $left, float $effort, float $rate) use (&$told): void {
                $told[] = [$share, $left, $effort, $rate];
            });
        $report = $manager->plan();
        [$shares, $lefts, $efforts, $rates] = array_map(null, ...$told);
        self::assertGreaterThan(0.0, max($shares));
        self::assertIsFloat(max($lefts));
        self::assertEqualsWithDelta(2.0, max($efforts), 0.001);
        self::assertGreaterThan(1000.0, max($rates));
        self::assertSame(120, $report->referencesRemoved);
        self::assertNotEmpty($report->samples);
        self::assertSame(['tag', 'entry', 'why'], array_keys($report->samples[0]));
        self::assertSame(1, $server->redis()->exists($report->samples[0]['tag']), 'a key as it is');
        self::assertSame($report->samples, $report->jsonSerialize()['samples']);
    }

    public function testAChildThatAListenerForksTakesNothingOfItsParents(): void
    {
        $server = new Server();
        $redis = $server->redis();
        $redis->eval("for t = 1, 60000 do redis.call('SADD', 'tag:' .. t, 'item:' .. t) end redis.call('SET', 'item:1', '')");
        $connections = (int) $redis->info()['total_connections_received'];
        // Rounds are under way whenever the listener is called.
        $run = Run::code('$m = new Tagsweep\TagCleanupManager(\'' . $server->dsn() . '\', 604800, [\'grace\' => 0.0, \'verify\' => 0.01]); $child = null;
            $m->onProgress(function () use (&$child) { $child ??= pcntl_fork(); });
            try { $m->cleanup(); } catch (Tagsweep\Exception\LockLostException $e) { posix_kill(getmypid(), SIGKILL); }
            if ($child === 0) { echo "child"; exit(1); }
            pcntl_waitpid($child, $status);
            echo json_encode([pcntl_wtermsig($status), $m->lastReport()->complete, $m->lastReport()->warnings]);');
        self::assertSame('[9,true,[]]', $run->end()[1]);
        self::assertSame([1, $connections + 1], [\count($redis->keys('tag:*')), (int) $redis->info()['total_connections_received']]);
    }

    public function testALoggerIsToldHowItEnded(): void
    {
        $server = new Server();
        $this->fill($server->redis());
        $logger = new class {
            public array $lines = [];

            public function log($level, string|\Stringable $message, array $context = []): void
            {
                $this->lines[] = [$level, (string) $message, $context];
            }
        };
        $manager = new TagCleanupManager($server->redis(), 604800, self::QUICK);
        self::assertSame($manager, $manager->setLogger($logger));
        $manager->cleanup();
        [[$level, $message, $context]] = $logger->lines;
        self::assertSame('info', $level);
        self::assertStringContainsString('removed 20 tags and 120 references', $message);
        self::assertSame(20, $context['tags_removed']);

        $server->redis()->set('lock:cache_tag_cleanup', 'somebody');
        try {
            $manager->cleanup();
            self::fail('held');
        } catch (LockConflictedException) {
            self::assertSame('notice', $logger->lines[1][0]);
        }
        $nowhere = (new TagCleanupManager('unix:///nowhere/redis.sock'))->setLogger($logger);
        try {
            $nowhere->cleanup();
            self::fail('no server');
        } catch (Tagsweep\Exception\ConnectionException $e) {
            self::assertSame('error', $logger->lines[2][0]);
            self::assertStringContainsString($e->getMessage(), $logger->lines[2][1]);
        }
        $server->redis()->del('lock:cache_tag_cleanup');
        // Not old enough, so there is something to wait for.
        $server->redis()->sAdd('tag:young', 'item:gone');
        $manager->onProgress(fn () => throw new DomainException('mine'));
        try {
            $manager->cleanup();
            self::fail('nothing was thrown');
        } catch (DomainException) {
            [$level, $message] = $logger->lines[3];
            self::assertSame('notice', $level);
            self::assertStringContainsString('stopped on request', $message);
        }
        $manager->setLogger(null);
        $this->expectException(\TypeError::class);
        $manager->setLogger(new \stdClass());
    }

    public function testAFatalErrorInAListenerGivesTheLockBackFirst(): void
    {
        $server = new Server();
        $server->redis()->sAdd('tag:young', 'item:gone');
        $run = Run::code("\$dsn = '{$server->dsn()}';" . <<<'PHP'
            register_shutdown_function(function () use ($dsn) {
                $lock = new Tagsweep\DistributedLock($dsn, 'cache_tag_cleanup', 5);
                echo $lock->acquire() ? 'free' : 'held';
            });
            $manager = new Tagsweep\TagCleanupManager($dsn);
            $manager->onProgress(fn () => trigger_error('mine', E_USER_ERROR));
            $manager->cleanup();
            echo 'went on';
            PHP);
        [$status, $output, $errors] = $run->end();
        self::assertSame(255, $status, $errors);
        self::assertStringEndsWith('free', $output);
        self::assertStringNotContainsString('went on', $output);
        self::assertSame(0, $server->redis()->exists('lock:cache_tag_cleanup'));
    }

    public function testAListenerThatIsPrivateIsCalledAllTheSame(): void
    {
        $server = new Server();
        $manager = new TagCleanupManager($server->dsn(), 604800, ['grace' => 1]);
        $listener = new class () {
            public int $calls = 0;

            public function register(TagCleanupManager $manager): void
            {
                $manager->onProgress([$this, 'tick']);
            }

            private function tick(): void
            {
                ++$this->calls;
            }
        };
        $listener->register($manager);
        $server->redis()->sAdd('tag:young', 'item:gone');
        $server->redis()->set('item:live', 1);
        $server->redis()->sAdd('tag:young', 'item:live');
        $manager->cleanup();
        self::assertGreaterThan(3, $listener->calls);
    }
}
