<?php

declare(strict_types=1);

use PHPUnit\Framework\TestCase;
use Tagsweep\DistributedLock;
use Tagsweep\Exception\ConnectionException;
use Tagsweep\Exception\ExceptionInterface;
use Tagsweep\Exception\InvalidArgumentException;
use Tagsweep\Exception\ServerException;

final class DistributedLockTest extends TestCase
{
    private Server $server;
    private Redis $redis;

    protected function setUp(): void
    {
        $this->server = new Server(true, '--requirepass', 'canary-secret');
        $this->redis = new Redis();
        $this->redis->connect('127.0.0.1', $this->server->port);
        $this->redis->auth('canary-secret');
        $this->redis->select(4);
        $this->redis->setOption(Redis::OPT_PREFIX, 'app:');
    }

    public function testItLocksWhereThePhpredisObjectPoints(): void
    {
        $lock = new DistributedLock($this->redis, 'job');
        self::assertTrue($lock->acquire());
        self::assertSame($lock->owner(), $this->redis->get('lock:job'));
        self::assertEqualsWithDelta(60_000, $this->redis->pttl('lock:job'), 2_000);
        self::assertTrue($lock->isAcquired());
        self::assertEqualsWithDelta(59.4, $lock->remaining(), 1.0);
        $other = new DistributedLock($this->redis, 'job');
        self::assertFalse($other->acquire());
        self::assertFalse($other->release());
        self::assertTrue($lock->release());
        self::assertTrue($other->acquire());
        self::assertFalse($lock->isAcquired());
    }

    public function testUnixSocketsDsnsAndArraysLeadToTheSameLock(): void
    {
        $unix = new Redis();
        $unix->connect($this->server->socket);
        $unix->auth('canary-secret');
        $unix->select(4);
        $unix->setOption(Redis::OPT_PREFIX, 'app:');
        $targets = [
            $unix,
            "redis://:canary-secret@127.0.0.1:{$this->server->port}/4",
            ['path' => $this->server->socket, 'password' => 'canary-secret', 'database' => 4, 'prefix' => 'app:'],
            ['host' => '127.0.0.1', 'port' => $this->server->port, 'password' => 'canary-secret', 'database' => 4, 'prefix' => 'app:'],
        ];
        $held = new DistributedLock($this->redis, 'job');
        $held->acquire();
        foreach ($targets as $target) {
            $lock = new DistributedLock($target, 'job', 60, is_string($target) ? ['prefix' => 'app:'] : []);
            self::assertFalse($lock->acquire());
        }
        $held->release();
        self::assertTrue($lock->acquire());
    }

    /** The design's own class, as applications have it. */
    public function testAnOldInstanceAndANewOneExcludeEachOther(): void
    {
        $new = new DistributedLock($this->redis, 'job', 60);
        self::assertTrue($this->redis->set('lock:job', uniqid('', true), ['NX', 'EX' => 60]));
        self::assertFalse($new->acquire());
        $this->redis->del('lock:job');
        self::assertTrue($new->acquire());
        self::assertFalse($this->redis->set('lock:job', uniqid('', true), ['NX', 'EX' => 60]));
    }

    public function testExtend(): void
    {
        $lock = new DistributedLock($this->redis, 'job', 5);
        self::assertFalse($lock->extend());
        $lock->acquire();
        self::assertTrue($lock->extend(100));
        self::assertGreaterThan(90_000, $this->redis->pttl('lock:job'));
        $this->redis->del('lock:job');
        self::assertFalse($lock->extend());
        self::assertSame(0, $this->redis->exists('lock:job'));
    }

    /** A raw SELECT has no getter; the object is asked. */
    public function testTheObjectsRealDatabaseIsUsed(): void
    {
        $this->redis->rawCommand('SELECT', '9');
        self::assertSame(4, $this->redis->getDbNum());
        $lock = new DistributedLock($this->redis, 'raw');
        self::assertTrue($lock->acquire());
        self::assertSame(1, $this->redis->exists('lock:raw'));
    }

    /** Host and port of a copy may lead elsewhere, as they do with a TLS context. */
    public function testAnObjectThatCannotBeCopiedIsRefused(): void
    {
        $elsewhere = new Server(true);
        $liar = new class($elsewhere->port) extends Redis {
            public function __construct(private int $elsewhere)
            {
                parent::__construct();
            }

            public function getPort()
            {
                return $this->elsewhere;
            }
        };
        $liar->connect('127.0.0.1', $this->server->port);
        $liar->auth('canary-secret');
        $this->expectException(ConnectionException::class);
        $this->expectExceptionMessage('cannot be copied');
        new DistributedLock($liar, 'a');
    }

    /** Also of an object whose connection broke: whoever catches an outage catches this. */
    public function testAnOutageIsOne(): void
    {
        $server = new Server();
        $redis = $server->redis();
        unset($server);
        foreach (['no connection', 'not connected'] as $told) {
            try {
                new DistributedLock($redis, 'a');
                self::fail('no exception');
            } catch (ConnectionException $e) {
                self::assertStringContainsString($told, $e->getMessage());
            }
            try {
                $redis->get('a');
                self::fail('there is a server');
            } catch (RedisException) {
                // Now it knows.
            }
        }
    }

    public function testFencesGrow(): void
    {
        $lock = new DistributedLock($this->redis, 'job');
        $fences = [];
        for ($i = 0; $i < 5; $i++) {
            $lock->acquire();
            $fences[] = $lock->fence();
            $lock->release();
        }
        $sorted = array_unique($fences);
        sort($sorted);
        self::assertSame($sorted, $fences);
        self::assertNull($lock->fence());
    }

    public function testTheDestructorReleases(): void
    {
        $lock = new DistributedLock($this->redis, 'job');
        $lock->acquire();
        unset($lock);
        self::assertSame(0, $this->redis->exists('lock:job'));
    }

    /** @return iterable<string, array{callable(Redis): mixed, class-string, string}> */
    public static function wrong(): iterable
    {
        yield 'empty key' => [fn ($r) => new DistributedLock($r, ''), InvalidArgumentException::class, 'must not be empty'];
        yield 'ttl 0' => [fn ($r) => new DistributedLock($r, 'a', 0), InvalidArgumentException::class, 'greater than 0'];
        yield 'negative ttl' => [fn ($r) => new DistributedLock($r, 'a', -1), InvalidArgumentException::class, 'greater than 0'];
        yield 'endless ttl' => [fn ($r) => new DistributedLock($r, 'a', INF), InvalidArgumentException::class, 'number of seconds'];
        yield 'no number' => [fn ($r) => new DistributedLock($r, 'a', NAN), InvalidArgumentException::class, 'greater than 0'];
        yield 'huge ttl' => [fn ($r) => new DistributedLock($r, 'a', PHP_INT_MAX), InvalidArgumentException::class, '2^53 ms'];
        yield 'extend 0' => [fn ($r) => (new DistributedLock($r, 'a'))->extend(0), InvalidArgumentException::class, 'greater than 0'];
        yield 'extend negative' => [fn ($r) => (new DistributedLock($r, 'a'))->extend(PHP_INT_MIN), InvalidArgumentException::class, 'greater than 0'];
        yield 'wrong object' => [fn ($r) => new DistributedLock(new ArrayObject(), 'a'), TypeError::class, 'must be of type Redis|array|string, ArrayObject given'];
        yield 'wrong key' => [fn ($r) => new DistributedLock($r, []), TypeError::class, 'lockKey'];
        yield 'no callable' => [fn ($r) => (new DistributedLock($r, 'a'))->synchronized('nonsense'), TypeError::class, 'Argument #1 ($body) must be of type callable, string given'];
        yield 'no callable for get' => [fn ($r) => (new DistributedLock($r, 'a'))->get(1), TypeError::class, 'Argument #1 ($callback) must be of type ?callable, int given'];
        yield 'wrong ttl' => [fn ($r) => new DistributedLock($r, 'a', []), TypeError::class, 'ttl'];
        yield 'unconnected' => [fn ($r) => new DistributedLock(new Redis(), 'a'), ConnectionException::class, 'not connected'];
        yield 'no DSN' => [fn ($r) => new DistributedLock('nonsense', 'a'), InvalidArgumentException::class, 'redis://'];
        yield 'unknown option' => [fn ($r) => new DistributedLock($r, 'a', 1, ['wiat' => 1]), InvalidArgumentException::class, 'unknown option "wiat"'];
        yield 'nobody there' => [fn ($r) => (new DistributedLock('redis://:canary@127.0.0.1:1', 'a'))->acquire(), ConnectionException::class, 'redis://127.0.0.1:1/0'];
        yield 'wrong type' => [function ($r) { $r->rPush('lock:list', 'x'); (new DistributedLock($r, 'list'))->acquire(); }, ServerException::class, 'WRONGTYPE'];
    }

    /** @dataProvider wrong */
    public function testBadInputIsAClearError(callable $act, string $class, string $text): void
    {
        try {
            $act($this->redis);
            self::fail('no error');
        } catch (Throwable $e) {
            self::assertInstanceOf($class, $e);
            self::assertStringContainsString($text, $e->getMessage());
            self::assertStringNotContainsString('canary', (string) $e);
            self::assertSame(__FILE__, $e->getFile());
        }
    }

    public function testAWrongPasswordIsSaidAndNotShown(): void
    {
        $lock = new DistributedLock("redis://:canary-wrong@127.0.0.1:{$this->server->port}", 'a');
        try {
            $lock->acquire();
            self::fail('no error');
        } catch (ConnectionException $e) {
            self::assertInstanceOf(ExceptionInterface::class, $e);
            self::assertInstanceOf(RuntimeException::class, $e);
            self::assertStringContainsString('check user and password', $e->getMessage());
            ob_start();
            var_dump($e, $lock, (new ReflectionExtension('tagsweep'))->getINIEntries());
            self::assertStringNotContainsString('canary', ob_get_clean());
        }
    }

    public function testItRefusesToBeCopied(): void
    {
        $lock = new DistributedLock($this->redis, 'a');
        foreach ([fn () => clone $lock, fn () => serialize($lock), fn () => unserialize('O:24:"Tagsweep\DistributedLock":0:{}')] as $act) {
            try {
                $act();
                self::fail('no error');
            } catch (Throwable $e) {
                self::assertMatchesRegularExpression('/uncloneable|not allowed/', $e->getMessage());
            }
        }
    }

    public function testItCanBeExtendedAndMocked(): void
    {
        $child = new class($this->redis, 'child') extends DistributedLock {
            public function extend(?int $ttl = null): bool
            {
                return parent::extend(($ttl ?? 1) * 2);
            }
        };
        self::assertTrue($child->acquire());
        self::assertTrue($child->extend(10));
        self::assertGreaterThan(15_000, $this->redis->pttl('lock:child'));
        $mock = $this->createMock(DistributedLock::class);
        $mock->method('acquire')->willReturn(true);
        self::assertTrue($mock->acquire());
    }

    public function testAForkedChildReleasesNothing(): void
    {
        $code = <<<'PHP'
            $redis = new Redis(); $redis->connect($argv[1] ?? getenv('SOCKET'));
            $lock = new Tagsweep\DistributedLock('unix://' . getenv('SOCKET'), 'fork');
            $lock->acquire();
            $pid = pcntl_fork();
            if ($pid === 0) { echo json_encode([$lock->isAcquired(), $lock->release()]), "\n"; exit(0); }
            pcntl_waitpid($pid, $status);
            echo json_encode([$redis->exists('lock:fork'), $lock->isAcquired(), $lock->release()]), "\n";
            PHP;
        $server = new Server();
        putenv("SOCKET={$server->socket}");
        [$status, $output, $errors] = Run::code($code)->end();
        self::assertSame([0, "[false,false]\n[1,true,true]\n", ''], [$status, $output, $errors]);
    }

    /** @return iterable<string, array{string}> */
    public static function endings(): iterable
    {
        yield 'end' => [''];
        yield 'exit' => ['exit(0);'];
        yield 'exception' => ['throw new Exception("x");'];
        yield 'fatal error' => ['undefined_function();'];
        yield 'out of memory' => ['ini_set("memory_limit", "8M"); str_repeat("x", 1 << 30);'];
        yield 'time limit' => ['set_time_limit(1); while (true) {}'];
        yield 'static' => ['class Keep { public static $lock; } Keep::$lock = $lock; exit;'];
    }

    /** @dataProvider endings */
    public function testHoweverPhpEndsTheLockIsReleased(string $ending): void
    {
        $server = new Server();
        $code = "\$lock = new Tagsweep\\DistributedLock('{$server->dsn()}', 'job'); echo (int) \$lock->acquire(), \"\\n\"; $ending";
        [, $output] = Run::code($code)->end();
        self::assertStringStartsWith("1\n", $output);
        self::assertSame(0, $server->redis()->exists('lock:job'));
    }

    public function testWhatIsWrongIsSaidWhateverItsBytes(): void
    {
        $dsn = "redis://:canary-secret@127.0.0.1:{$this->server->port}";
        $wrong = [
            [['url' => $dsn, 'tls' => true], [], '"tls" cannot be given beside "url"'],
            [['path' => '/s', 'host' => 'h'], [], '"host" cannot be given beside "path"'],
            [['tls_cert' => '/nowhere'], [], 'belong together'],
            [['tls_ca' => __FILE__, 'password' => 'x'], [], 'without TLS'],
            [['path' => '/s', 'tls_ca' => __FILE__], [], 'without TLS'],
            [['password' => "\xff"], [], '"password" must be UTF-8'],
            [['path' => "/no\0where", 'timeout' => 0], [], 'timeouts'],
            [$dsn, ["\xff" => 1], 'unknown option'],
            [$dsn, ["a\0b" => 1], 'unknown option'],
            [$dsn, ['timeout' => 0], 'timeouts'],
        ];
        foreach ($wrong as [$redis, $options, $told]) {
            try {
                new DistributedLock($redis, 'job', 60, $options);
                self::fail("taken: $told");
            } catch (InvalidArgumentException $e) {
                self::assertStringContainsString($told, $e->getMessage());
            }
        }
        $this->expectException(TypeError::class);
        $this->expectExceptionMessage('class@anonymous given');
        new DistributedLock(new class () {}, 'job');
    }

    public function testLocksThatComeAndGoShareAConnection(): void
    {
        $dsn = "redis://:canary-secret@127.0.0.1:{$this->server->port}";
        $connections = fn (): int => (int) $this->redis->info('stats')['total_connections_received'];
        $before = $connections();
        for ($n = 0; $n < 20; ++$n) {
            $lock = new DistributedLock($dsn, "job$n");
            self::assertTrue($lock->acquire());
            unset($lock);
        }
        self::assertSame($before + 1, $connections());
    }

    public function testAnAnswerIsWaitedForAwakeAsLongAsIsAskedFor(): void
    {
        $slept = function (Redis|array $server, array $options): int {
            $lock = new DistributedLock($server, 'job', 60, $options);
            $lock->acquire();
            $before = getrusage()['ru_nvcsw'];
            for ($i = 0; $i < 100; $i++) {
                $lock->release();
                $lock->acquire();
            }

            return getrusage()['ru_nvcsw'] - $before;
        };
        $server = ['path' => $this->server->socket, 'password' => 'canary-secret'];
        // Beside other work an answer may be there before one has fallen asleep.
        $awake = $slept($this->redis, ['busyPoll' => 1]);
        self::assertGreaterThan(3 * $awake, $slept($this->redis, ['busyPoll' => 0]));
        $awake = $slept(['busy_poll' => 1.0] + $server, []);
        self::assertGreaterThan(3 * $awake, $slept(['busy_poll' => 0] + $server, []));
        foreach ([
            'busyPoll must be at most 1 s' => [$this->redis, ['busyPoll' => 1.5]],
            'busy_poll must be at most 1 s' => [['busy_poll' => 1.5] + $server, []],
            'timeouts must be greater than 0' => [$server, ['busyPoll' => 0.0001, 'timeout' => 0]],
        ] as $told => $wrong) {
            try {
                $slept(...$wrong);
                self::fail($told);
            } catch (InvalidArgumentException $e) {
                self::assertStringContainsString($told, $e->getMessage());
            }
        }
    }

    public function testTypesAreComplainedOfInPhpsOwnWords(): void
    {
        $dsn = "redis://127.0.0.1:{$this->server->port}";
        $lock = new DistributedLock($dsn, 'job');
        $calls = [
            'extend(): Argument #1 ($ttl) must be of type ?int, float given' => fn () => $lock->extend(1.5),
            'acquireWithin(): Argument #1 ($seconds) must be of type float, null given' => fn () => $lock->acquireWithin(null),
            'isOwnedBy(): Argument #1 ($owner) must be of type ?string, int given' => fn () => $lock->isOwnedBy(5),
            '__construct(): Argument #4 ($options) must be of type array, string given' => fn () => new DistributedLock($dsn, 'job', 1, 'no'),
            '__construct(): Argument #1 ($redis) must be of type Redis|array|string, stdClass given' => fn () => new DistributedLock(new \stdClass(), 'job'),
            'restore(): Argument #1 ($redis) must be of type Redis|array|string, int given' => fn () => DistributedLock::restore(5, 'job', 'owner'),
        ];
        foreach ($calls as $told => $call) {
            try {
                $call();
                self::fail("taken: $told");
            } catch (TypeError $e) {
                self::assertSame("Tagsweep\\DistributedLock::$told", $e->getMessage());
            }
        }
    }

    public function testAnObjectIsMadeOnce(): void
    {
        $lock = new DistributedLock("redis://127.0.0.1:{$this->server->port}", 'job');
        $this->expectException(InvalidArgumentException::class);
        $this->expectExceptionMessage('constructed already');
        $lock->__construct('redis://127.0.0.1', 'other');
    }

    /** Of what serves as a handler or a listener; of all else they are a mistake. */
    public function testArgumentsBeyondThoseDeclaredAreIgnored(): void
    {
        $lock = new DistributedLock($this->redis, 'surplus', 60.0);
        self::assertTrue($lock->acquire());
        self::assertTrue((new \ReflectionMethod($lock, 'release'))->invoke($lock, SIGTERM, ['signo' => SIGTERM]));
        $manager = new \Tagsweep\TagCleanupManager($this->redis);
        self::assertNull($manager->stop(SIGTERM, []));
        self::assertNull(($manager->stop(...))(1, 2, 3));
        $of = new class($this->redis, 'child', 60.0) extends DistributedLock {
        };
        self::assertTrue($of->acquire() && $of->release(...array_fill(0, 50, str_repeat('x', 100))));
        $this->expectException(ArgumentCountError::class);
        $lock->acquire(true);
    }

    public function testAnObjectEqualsItselfAlone(): void
    {
        $one = new DistributedLock($this->redis, 'one');
        self::assertTrue($one == $one && $one != new DistributedLock($this->redis, 'one'));
        self::assertFalse(in_array($one, [new DistributedLock($this->redis, 'other'), null, 'one']));
        self::assertTrue(in_array(true, [$one]) && in_array($one, [true]));
    }

    public function testOptionsOfAConfigurationAreStrings(): void
    {
        $lock = new DistributedLock(['host' => '127.0.0.1', 'port' => (string) $this->server->port, 'password' => 'canary-secret', 'database' => '4'], 'text', 60.0, ['maxHold' => '30', 'renew' => '0', 'timeout' => '1.5']);
        self::assertTrue($lock->acquire() && $lock->release());
    }

    public function testAKeyInPlaceOfItsPathIsNotRepeated(): void
    {
        $this->expectExceptionMessageMatches('/^tls_key: (?!.*SECRET)/s');
        new DistributedLock(['host' => 'h', 'tls' => true, 'tls_cert' => __FILE__, 'tls_key' => "-----BEGIN KEY-----\nSECRET\n"], 'x');
    }

    public function testOptionsMayBeReferences(): void
    {
        $options = ['maxHold' => null, 'ttl' => 30, 'wait' => 0.5];
        $server = ['host' => '127.0.0.1', 'path' => null, 'port' => $this->server->port, 'password' => 'canary-secret'];
        foreach ([&$options, &$server] as &$array) {
            foreach ($array as &$value) {
                // They stay references.
            }
        }
        unset($value);
        self::assertTrue((new DistributedLock($server, 'job', 60, $options))->acquire());
    }

    public function testTheApplicationsLastErrorIsItsOwn(): void
    {
        $this->redis->rawCommand('ACL', 'SETUSER', 'plain', 'on', '>secret', '~*', '+@all', '-info', '-client|info');
        $plain = new Redis();
        $plain->connect('127.0.0.1', $this->server->port);
        $plain->auth(['plain', 'secret']);
        new DistributedLock($plain, 'job');
        self::assertNull($plain->getLastError());
        try {
            $plain->rawCommand('INFO');
        } catch (RedisException) {
            // It says so twice.
        }
        $before = $plain->getLastError();
        new DistributedLock($plain, 'job');
        self::assertSame([true, $before], [str_contains($before, 'NOPERM'), $plain->getLastError()]);
    }

    /** @return iterable<string, array{string, class-string}> */
    public static function answers(): iterable
    {
        foreach (file(dirname(__DIR__, 2) . '/tests/errors.tsv', FILE_IGNORE_NEW_LINES) as $line) {
            if ($line[0] !== '#') {
                [$answer, , , $class] = explode("\t", $line);
                yield $answer ?: 'no answer' => [$answer, "Tagsweep\\Exception\\$class"];
            }
        }
    }

    /** @dataProvider answers */
    public function testEveryAnswerOfAServerHasItsExceptionForEveryAct(string $answer, string $class): void
    {
        $socket = "{$this->server->folder}/refusing";
        $refusing = new Run([__DIR__ . '/refusing.php', $socket, $answer]);
        $refusing->awaitLine('ready');
        try {
            $this->assertEveryActThrows($socket, $class);
        } finally {
            $refusing->signal(SIGKILL);
            $refusing->end();
        }
    }

    private function assertEveryActThrows(string $socket, string $class): void
    {
        $acts = [
            'acquire' => static fn () => (new DistributedLock("unix://$socket", 'job'))->acquire(),
            'verify' => static fn (DistributedLock $lock) => $lock->verify(),
            'refresh' => static fn (DistributedLock $lock) => $lock->refresh(),
            'release' => static fn (DistributedLock $lock) => $lock->release(),
        ];
        foreach ($acts as $name => $act) {
            $lock = DistributedLock::restore("unix://$socket", 'job', '0123456789abcdef:7|host|1|test');
            try {
                $act($lock);
                self::fail("$name: no exception");
            } catch (ExceptionInterface $e) {
                self::assertSame($class, $e::class, "$name: {$e->getMessage()}");
                self::assertStringContainsString('"lock:job"', $e->getMessage());
                self::assertStringContainsString("unix://$socket", $e->getMessage());
            }
        }
    }
}
