<?php

declare(strict_types=1);

use PHPUnit\Framework\TestCase;

/** The extension in real php-fpm workers. */
final class FpmTest extends TestCase
{
    private Server $server;
    /** @var resource */
    private $fpm;
    private string $socket;

    protected function setUp(): void
    {
        $this->server = new Server();
        $folder = $this->server->folder;
        $this->socket = "$folder/fpm";
        $user = posix_getuid() === 0 ? "user = root\ngroup = root\n" : '';
        file_put_contents("$folder/fpm.conf", "[global]\nerror_log = $folder/fpm.log\ndaemonize = no\nprocess_control_timeout = 20\n[www]\n{$user}listen = {$this->socket}\n"
            . "pm = static\npm.max_children = 2\ncatch_workers_output = yes\nphp_admin_flag[display_errors] = on\n");
        file_put_contents("$folder/page.php", <<<'PHP'
            <?php
            $dsn = 'unix://' . $_GET['socket'];
            if ($_GET['do'] === 'leak') {
                $GLOBALS['lock'] = new Tagsweep\DistributedLock($dsn, 'leak');
                echo json_encode([getmypid(), $GLOBALS['lock']->acquire()]);
                undefined_function();
            }
            if ($_GET['do'] === 'lock') {
                $lock = new Tagsweep\DistributedLock($dsn, 'job');
                echo json_encode([getmypid(), $lock->acquire(), $lock->release()]);
            }
            if ($_GET['do'] === 'renew') {
                $lock = new Tagsweep\DistributedLock($dsn, 'renewed', 1.8, ['renew' => true, 'wait' => 20]);
                $taken = $lock->acquire();
                usleep(2_000_000);
                echo json_encode([getmypid(), $taken && $lock->isAcquired() && $lock->verify(), $lock->fence()]);
            }
            if ($_GET['do'] === 'sweep') {
                $manager = new Tagsweep\TagCleanupManager($dsn, 604800, ['verify' => 0.01]);
                echo json_encode([getmypid(), $manager->cleanup(), $manager->lastReport()->complete]);
            }
            PHP);
        $programs = glob('/usr/sbin/php-fpm*');
        self::assertNotEmpty($programs, 'php-fpm is missing; run `make deps`');
        $command = [$programs[0], '-F', '-y', "$folder/fpm.conf", '-d', 'extension=' . Run::extension()];
        if (posix_getuid() === 0) {
            $command[] = '-R';
        }
        $this->fpm = proc_open($command, [['file', '/dev/null', 'r'], ['file', "$folder/out", 'w'], ['file', "$folder/out", 'w']], $pipes);
        $end = microtime(true) + 10;
        while (!file_exists($this->socket)) {
            self::assertLessThan($end, microtime(true), 'php-fpm does not start: ' . file_get_contents("$folder/out"));
            usleep(5_000);
        }
    }

    protected function tearDown(): void
    {
        proc_terminate($this->fpm, SIGQUIT);
        proc_close($this->fpm);
    }

    /** @return mixed */
    private function get(string $do)
    {
        return $this->answer($this->ask($do));
    }

    /** @return array{resource, resource} a request under way */
    private function ask(string $do): array
    {
        $environment = [
            'SCRIPT_FILENAME' => $this->server->folder . '/page.php', 'REQUEST_METHOD' => 'GET', 'PATH' => getenv('PATH'),
            'QUERY_STRING' => http_build_query(['do' => $do, 'socket' => $this->server->socket]),
        ];
        $process = proc_open(['cgi-fcgi', '-bind', '-connect', $this->socket], [['file', '/dev/null', 'r'], ['pipe', 'w'], ['file', '/dev/null', 'w']], $pipes, null, $environment);

        return [$process, $pipes[1]];
    }

    /** @param array{resource, resource} $request */
    private function answer(array $request): array
    {
        $response = stream_get_contents($request[1]);
        proc_close($request[0]);
        self::assertMatchesRegularExpression('/^\[.*?\]/m', $response, file_get_contents($this->server->folder . '/fpm.log'));
        preg_match('/^\[.*?\]/m', $response, $found);

        return json_decode($found[0], true);
    }

    public function testWorkersLockAndSweepRequestAfterRequest(): void
    {
        $pids = [];
        for ($i = 0; $i < 30; $i++) {
            [$pid, $acquired, $released] = $this->get('lock');
            self::assertSame([true, true], [$acquired, $released]);
            $pids[$pid] = true;
        }
        $redis = $this->server->redis();
        Server::tag($redis, 'live', 1, 1);
        Server::tag($redis, 'orphan', 0, 2);
        [, $count, $complete] = $this->get('sweep');
        self::assertSame([1, true], [$count, $complete]);
        // A reload replaces the workers; the extension starts and ends in each.
        proc_terminate($this->fpm, SIGUSR2);
        $end = microtime(true) + 10;
        do {
            $new = $this->get('lock')[0];
            self::assertLessThan($end, microtime(true), 'no new worker');
        } while (isset($pids[$new]));
    }

    /** Two workers take turns under a renewed lease, while the pool is reloaded again and again. */
    public function testRenewalOutlivesNoRequestAndNoReload(): void
    {
        $redis = $this->server->redis();
        $fences = [];
        for ($round = 0; $round < 3; $round++) {
            $requests = [$this->ask('renew'), $this->ask('renew')];
            foreach ($requests as $request) {
                [, $held, $fence] = $this->answer($request);
                self::assertTrue($held);
                $fences[] = $fence;
            }
            self::assertSame(0, $redis->exists('lock:renewed'), 'released at the end of the request');
            proc_terminate($this->fpm, SIGUSR2);
            $this->get('lock');
        }
        self::assertCount(6, array_unique($fences));
        self::assertDoesNotMatchRegularExpression('/signal|SIGSEGV|core dumped/', file_get_contents($this->server->folder . '/fpm.log'));
        // Workers that are told to end at once leave a lease that ends with its TTL.
        $request = $this->ask('renew');
        $end = microtime(true) + 5;
        while ($redis->exists('lock:renewed') === 0) {
            self::assertLessThan($end, microtime(true));
        }
        proc_terminate($this->fpm, SIGTERM);
        $told = microtime(true);
        while ($redis->exists('lock:renewed') === 1) {
            self::assertLessThan($told + 4, microtime(true), 'renewed by a worker that is gone');
        }
        stream_get_contents($request[1]);
        proc_close($request[0]);
    }

    public function testALockThatARequestLeavesIsReleasedAtItsEnd(): void
    {
        for ($i = 0; $i < 3; $i++) {
            self::assertTrue($this->get('leak')[1]);
        }
        self::assertSame(0, $this->server->redis()->exists('lock:leak'));
    }

    public function testPhpinfoHasATable(): void
    {
        [, $text] = (new Run(['--ri', 'tagsweep']))->end();
        foreach (['tagsweep support => enabled', 'Version => ', 'tagsweep.alias_namespace => '] as $line) {
            self::assertStringContainsString($line, $text);
        }
    }
}
