<?php

declare(strict_types=1);

use PHPUnit\Framework\TestCase;
use Symfony\Component\Console\Tester\CommandTester;
use Tagsweep\Console\CacheTagsCleanupCommand;
use Tagsweep\Console\Cleanup;
use Tagsweep\Console\Options;

final class ConsoleTest extends TestCase
{
    private const BIN = __DIR__ . '/../glue/bin/cache-tag-cleanup';

    private Server $server;
    private Redis $redis;

    protected function setUp(): void
    {
        $this->server = new Server();
        $this->redis = $this->server->redis();
        Server::tag($this->redis, 'live', 2, 1);
        Server::tag($this->redis, 'orphan', 0, 3);
    }

    /** @return array{int, string, string} */
    private function command(string ...$arguments): array
    {
        return (new Run([self::BIN, ...$arguments]))->end();
    }

    public function testHelpNeedsNoExtension(): void
    {
        $process = proc_open([PHP_BINARY, self::BIN, '--help'], [1 => ['pipe', 'w']], $pipes);
        $help = stream_get_contents($pipes[1]);
        self::assertSame(0, proc_close($process));
        foreach (array_keys(Tagsweep\Console\Options::TABLE) as $name) {
            self::assertStringContainsString("--$name", $help);
        }
    }

    public function testWithoutTheExtensionTheCommandsSayHowToLoadIt(): void
    {
        foreach ([[self::BIN], [$this->application(), 'cache:tags:cleanup']] as $command) {
            $process = proc_open([PHP_BINARY, ...$command, '--json'], [1 => ['pipe', 'w'], ['pipe', 'w']], $pipes);
            [$output, $errors] = [stream_get_contents($pipes[1]), stream_get_contents($pipes[2])];
            self::assertSame([Cleanup::ERROR, ''], [proc_close($process), $output]);
            self::assertStringStartsWith('Error: the extension tagsweep is not loaded; add extension=tagsweep.so to php.ini', $errors);
            self::assertStringContainsString($command[0], $errors);
        }
    }

    public function testTextAndJson(): void
    {
        [$status, $output] = $this->command('--url', $this->server->dsn(), '--dry-run');
        self::assertSame(Cleanup::DONE, $status);
        self::assertStringStartsWith("Would clean up 1 orphaned cache tags.\n", $output);
        Server::age($this->redis, 'tag:live', 60);
        Server::age($this->redis, 'tag:orphan', 60);
        [$status, $output, $errors] = $this->command('--url', $this->server->dsn(), '--json');
        self::assertSame([Cleanup::DONE, ''], [$status, $errors]);
        $lines = array_map(fn ($line) => json_decode($line, true, 512, JSON_THROW_ON_ERROR), explode("\n", trim($output)));
        $report = end($lines);
        self::assertSame(['report', 1, 1, 4], [$report['type'], $report['tags_removed'], $report['tags_pruned'], $report['references_removed']]);
        foreach (array_slice($lines, 0, -1) as $line) {
            self::assertSame('progress', $line['type']);
        }
    }

    public function testExitCodes(): void
    {
        self::assertSame(Cleanup::USAGE, $this->command('--grace', 'soon')[0]);
        self::assertSame(Cleanup::USAGE, $this->command('--unknown')[0]);
        [$status, , $errors] = $this->command('--max-share', '5');
        self::assertSame([Cleanup::USAGE, 0], [$status, strpos($errors, 'Error: --max-share must be ')], $errors);
        self::assertSame(Cleanup::USAGE, $this->command('--max-tag-age', '0s', '--url', $this->server->dsn())[0]);
        [$status, , $errors] = $this->command('--url', 'redis://:canary@127.0.0.1:1');
        self::assertSame(Cleanup::ERROR, $status);
        self::assertStringContainsString('redis://127.0.0.1:1/0', $errors);
        self::assertStringNotContainsString('canary', $errors);
        $this->redis->set('lock:cache_tag_cleanup', 'x');
        [$status, , $errors] = $this->command('--url', $this->server->dsn());
        self::assertSame(Cleanup::HELD, $status);
        self::assertSame("Error during cache tag cleanup: Unable to acquire lock for cache tag cleanup.\n", $errors);
        $this->redis->del('lock:cache_tag_cleanup');
        self::assertSame(Cleanup::ERROR, $this->command('--url', $this->server->dsn(), '--entry-prefix', 'wrong:')[0]);
    }

    /** @return iterable<string, array{int}> */
    public static function signals(): iterable
    {
        yield 'Ctrl-C' => [SIGINT];
        yield 'TERM' => [SIGTERM];
        yield 'HUP' => [SIGHUP];
    }

    /** @dataProvider signals */
    public function testASignalEndsItWithinASecondWithAPartialResult(int $signal): void
    {
        $this->redis->sAdd('tag:young', 'item:gone');
        $run = new Run([self::BIN, '--url', $this->server->dsn(), '--json', '--verify', '10s']);
        $run->awaitLine('"progress"');
        $begun = microtime(true);
        $run->signal($signal);
        [$status, $output] = $run->end();
        self::assertLessThan(4.0, microtime(true) - $begun);
        self::assertSame(Cleanup::PARTIAL, $status);
        $report = json_decode(trim($output), true);
        self::assertSame(['report', 'stopped', 4], [$report['type'], $report['reason'], $report['references_removed']]);
        self::assertSame(0, $this->redis->exists('lock:cache_tag_cleanup'));
    }

    public function testWhoeverDoesNotReadHoldsNothingUp(): void
    {
        [$reader, $writer] = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);
        stream_set_blocking($writer, false);
        while (@fwrite($writer, str_repeat("\n", 4096))) {
            // until there is no room
        }
        stream_set_blocking($writer, true);
        $run = new Run([self::BIN, '--url', $this->server->dsn(), '--json', '--verify', '3s', '--lock-ttl', '2s'], '', $writer);
        fclose($writer);
        Run::until('it sweeps', fn () => $this->redis->exists('lock:cache_tag_cleanup') === 1);
        Run::until('it has ended', fn () => $this->redis->exists('lock:cache_tag_cleanup') === 0);
        $output = stream_get_contents($reader);
        self::assertSame(Cleanup::DONE, $run->end()[0]);
        $lines = explode("\n", trim($output));
        self::assertSame(['report', 4], [json_decode(end($lines), true)['type'], json_decode(end($lines), true)['references_removed']]);
    }

    public function testAnErrorIsTheLastLineOfJson(): void
    {
        [$status, $output] = $this->command('--url', 'unix:///nowhere', '--json');
        self::assertSame([Cleanup::ERROR, 'error'], [$status, json_decode(trim($output), true)['type']]);
    }

    public function testAMisplacedDsnIsNotRepeated(): void
    {
        foreach ([['redis://:secret@h'], ['-u', 'redis://:secret@h'], ['--urll', 'redis://:secret@h'], ['--url:redis://:secret@h'], ['--grace', 'redis://:secret@h'], ['--max-share=redis://:secret@h']] as $arguments) {
            [$status, , $errors] = $this->command(...$arguments);
            self::assertSame(Cleanup::USAGE, $status);
            self::assertStringNotContainsString('secret', $errors);
        }
        require_once '/usr/share/php/Symfony/Component/Console/autoload.php';
        self::assertStringNotContainsString('secret', print_r(new CacheTagsCleanupCommand('redis://:secret@h'), true));
        self::assertStringNotContainsString('secret', print_r(new Options(['url' => 'redis://:secret@h']), true));
    }

    public function testAQuietCommandStillComplains(): void
    {
        require_once '/usr/share/php/Symfony/Component/Console/autoload.php';
        $tester = new CommandTester(new CacheTagsCleanupCommand('unix:///nowhere'));
        self::assertSame(Cleanup::ERROR, $tester->execute([], ['verbosity' => 16]));
        self::assertStringContainsString('Error during', $tester->getDisplay());
    }

    public function testWithoutAHandlerASignalStillReleasesTheLock(): void
    {
        $this->redis->sAdd('tag:young', 'item:gone');
        $run = Run::code("\$m = new Tagsweep\\TagCleanupManager('{$this->server->dsn()}');"
            . '$m->onProgress(function () { static $n = 0; if ($n++ === 0) { echo "running\n"; } }); $m->cleanup(); echo "never";');
        $run->awaitLine('running');
        $run->signal(SIGTERM);
        [$status, $output] = $run->end();
        self::assertSame([-SIGTERM, ''], [$status, $output]);
        self::assertSame(0, $this->redis->exists('lock:cache_tag_cleanup'));
    }

    public function testTheSymfonyCommand(): void
    {
        require_once '/usr/share/php/Symfony/Component/Console/autoload.php';
        $tester = new CommandTester(new CacheTagsCleanupCommand());
        self::assertSame(Cleanup::DONE, $tester->execute(['--url' => $this->server->dsn()]));
        self::assertStringStartsWith("Cleaned up 1 orphaned cache tags.\n", $tester->getDisplay());
    }

    public function testTheSymfonyCommandTakesNumbersAsCodeGivesThem(): void
    {
        $tester = new CommandTester(new CacheTagsCleanupCommand($this->server->dsn()));
        $given = ['--effort' => 3, '--max-share' => 0.9, '--max-tag-age' => 604800, '--dry-run' => 1, '--durable' => true];
        self::assertSame(Cleanup::DONE, $tester->execute($given), $tester->getDisplay());
        self::assertStringStartsWith('Would clean up 1 orphaned cache tags.', $tester->getDisplay());
        self::assertSame(Cleanup::USAGE, $tester->execute(['--effort' => 0.5]));
    }

    /** @return iterable<string, array{callable(string): void, callable(): void}> */
    public static function environments(): iterable
    {
        yield 'a .env file' => [static function ($url) { $_ENV['REDIS_URL'] = $url; }, static function () { unset($_ENV['REDIS_URL']); }];
        yield 'what the server passes on' => [static function ($url) { $_SERVER['REDIS_URL'] = $url; }, static function () { unset($_SERVER['REDIS_URL']); }];
        yield 'the environment' => [static fn ($url) => putenv("REDIS_URL=$url"), static fn () => putenv('REDIS_URL')];
    }

    /** @dataProvider environments */
    public function testTheServerIsThatOfTheEnvironment(callable $set, callable $unset): void
    {
        $set($this->server->dsn());
        try {
            $tester = new CommandTester(new CacheTagsCleanupCommand());
            self::assertSame(Cleanup::DONE, $tester->execute(['--dry-run' => true]), $tester->getDisplay());
            $elsewhere = new CommandTester(new CacheTagsCleanupCommand('unix:///nowhere'));
            self::assertSame(Cleanup::ERROR, $elsewhere->execute(['--dry-run' => true]));
        } finally {
            $unset();
        }
    }

    public function testTheSymfonyCommandShowsWrongUsageAsItWasTypedAndAside(): void
    {
        $run = new Run([$this->application(), 'cache:tags:cleanup', '--json', '--ansi', '--grace=<info>soon</info>']);
        [$status, $output, $errors] = $run->end();
        self::assertSame([Cleanup::USAGE, ''], [$status, $output]);
        self::assertStringStartsWith('Error: --grace must be a span ', $errors);
        self::assertStringEndsWith("not \"<info>soon</info>\"\n", $errors);
    }

    /** A program with the command. */
    private function application(): string
    {
        $file = $this->server->folder . '/app.php';
        file_put_contents($file, "<?php require '/usr/share/php/Symfony/Component/Console/autoload.php'; require '" . __DIR__ . "/../glue/autoload.php';"
            . '$a = new Symfony\Component\Console\Application(); $a->add(new Tagsweep\Console\CacheTagsCleanupCommand()); $a->run();');

        return $file;
    }

    public function testTheSymfonyCommandShowsABar(): void
    {
        $this->redis->sAdd('tag:young', 'item:gone');
        $file = $this->application();
        $run = new Run([$file, 'cache:tags:cleanup', '--ansi', '--url=' . $this->server->dsn(), '--grace=1s']);
        [$status, $output, $errors] = $run->end();
        self::assertSame(0, $status, $errors);
        self::assertStringContainsString('Cleaned up 2 orphaned cache tags.', $output);
        self::assertMatchesRegularExpression('~\d+ %  \d+ s left, \d+ tags, \d+ references \(\d+/s\), \d removed~', $errors);

        foreach (['--progress' => true, '--no-interaction' => false] as $option => $tells) {
            $this->redis->sAdd('tag:young', 'item:gone');
            $run = new Run([$file, 'cache:tags:cleanup', '--no-ansi', $option, '--url=' . $this->server->dsn(), '--grace=1s']);
            [$status, , $errors] = $run->end();
            self::assertSame(0, $status, $errors);
            self::assertSame($tells, str_contains($errors, "% "), $errors);
        }
    }
}
