<?php

declare(strict_types=1);

/** A private redis-server for a test: unix socket and, if asked for, a free port; stopped by pid. */
final class Server
{
    public readonly string $folder;
    public readonly string $socket;
    public readonly int $port;
    /** @var resource */
    private $process;

    public function __construct(bool $tcp = false, string ...$options)
    {
        $this->folder = sys_get_temp_dir() . '/tagsweep-php-' . bin2hex(random_bytes(6));
        mkdir($this->folder, 0700);
        $this->socket = $this->folder . '/s';
        $this->port = $tcp ? self::freePort() : 0;
        $command = [
            getenv('TAGSWEEP_TEST_SERVER') ?: 'redis-server', '--port', (string) $this->port, '--bind', '127.0.0.1',
            '--unixsocket', $this->socket, '--dir', $this->folder, '--save', '', ...$options,
        ];
        $process = proc_open($command, [['file', '/dev/null', 'r'], ['pipe', 'w'], ['file', '/dev/null', 'w']], $pipes);
        if ($process === false) {
            throw new RuntimeException('redis-server does not start; run `make deps`');
        }
        $this->process = $process;
        $log = '';
        while (($line = fgets($pipes[1])) !== false) {
            $log .= $line;
            if (stripos($line, 'ready to accept connections') !== false) {
                return;
            }
        }
        throw new RuntimeException("redis-server ended before it was ready:\n$log");
    }

    private static function freePort(): int
    {
        $probe = stream_socket_server('tcp://127.0.0.1:0');
        $port = (int) substr(strrchr(stream_socket_get_name($probe, false), ':'), 1);
        fclose($probe);

        return $port;
    }

    public function redis(): Redis
    {
        $redis = new Redis();
        $redis->connect($this->socket);

        return $redis;
    }

    public function dsn(): string
    {
        return "unix://{$this->socket}";
    }

    public function signal(int $signal): void
    {
        posix_kill(proc_get_status($this->process)['pid'], $signal);
    }

    public function __destruct()
    {
        if (isset($this->process)) {
            proc_terminate($this->process, SIGKILL);
            proc_close($this->process);
        }
        array_map('unlink', glob($this->folder . '/*'));
        rmdir($this->folder);
    }

    /** A tag with live and stale references, unused for an hour. */
    public static function tag(Redis $redis, string $name, int $live, int $stale): void
    {
        for ($i = 0; $i < $live; $i++) {
            $redis->set("item:$name:l$i", 'x');
            $redis->sAdd("tag:$name", "item:$name:l$i");
        }
        for ($i = 0; $i < $stale; $i++) {
            $redis->sAdd("tag:$name", "item:$name:s$i");
        }
        self::age($redis, "tag:$name", 3600);
    }

    public static function age(Redis $redis, string $key, int $seconds): void
    {
        $full = $redis->getOption(Redis::OPT_PREFIX) . $key;
        $redis->rawCommand('RESTORE', $full, '0', $redis->dump($key), 'REPLACE', 'IDLETIME', (string) $seconds);
    }
}
