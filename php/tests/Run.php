<?php

declare(strict_types=1);

use PHPUnit\Framework\Assert;

/** Runs PHP code in a process of its own, with the extension of this one. */
final class Run
{
    /** @var resource */
    private $process;
    /** @var array<int, resource> */
    private array $pipes = [];

    /**
     * @param list<string> $command after `php` and its options
     * @param resource|null $output where it writes to, if it is not to be read by end()
     */
    public function __construct(array $command, string $input = '', $output = null)
    {
        $this->process = proc_open(self::php($command), [['pipe', 'r'], $output ?? ['pipe', 'w'], ['pipe', 'w']], $this->pipes);
        fwrite($this->pipes[0], $input);
        fclose($this->pipes[0]);
    }

    public static function code(string $code): self
    {
        return new self([], "<?php\n" . $code);
    }

    /** @return list<string> */
    private static function php(array $command): array
    {
        $alias = ini_get('tagsweep.alias_namespace');

        return [PHP_BINARY, '-d', 'extension=' . self::extension(), '-d', "tagsweep.alias_namespace=$alias", ...$command];
    }

    public static function extension(): string
    {
        return getenv('TAGSWEEP_EXTENSION') ?: dirname(__DIR__, 2) . '/target/release/libtagsweep_php.so';
    }

    /** Waits for a line of output that holds a text. */
    public function awaitLine(string $text): string
    {
        while (($line = fgets($this->pipes[1])) !== false) {
            if (str_contains($line, $text)) {
                return $line;
            }
        }
        throw new RuntimeException("no \"$text\" in the output: " . stream_get_contents($this->pipes[2]));
    }

    public static function until(string $what, callable $so, float $seconds = 10): void
    {
        $end = microtime(true) + $seconds;
        while (!$so()) {
            Assert::assertLessThan($end, microtime(true), "waited for: $what");
            usleep(2_000);
        }
    }

    /** As ps shows it: R runs, S sleeps. */
    public function state(): string
    {
        $stat = file_get_contents('/proc/' . proc_get_status($this->process)['pid'] . '/stat');

        return substr($stat, strrpos($stat, ')') + 2, 1);
    }

    public function signal(int $signal): void
    {
        posix_kill(proc_get_status($this->process)['pid'], $signal);
    }

    /** @return array{int, string, string} exit code (or minus the signal that ended it), output, errors */
    public function end(): array
    {
        $output = isset($this->pipes[1]) ? stream_get_contents($this->pipes[1]) : '';
        $errors = stream_get_contents($this->pipes[2]);
        do {
            $status = proc_get_status($this->process);
        } while ($status['running']);
        proc_close($this->process);

        return [$status['signaled'] ? -$status['termsig'] : $status['exitcode'], $output, $errors];
    }
}
