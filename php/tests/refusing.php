<?php

declare(strict_types=1);

// A server that answers each command with one error, or closes the connection if that is empty.
// Arguments: the path of its socket, the error.

[, $socket, $answer] = $argv;
$server = stream_socket_server("unix://$socket");
$buffers = $clients = [];
echo "ready\n";

/** Length of the first command in a buffer, or 0 while it is not all there. */
function command(string $buffer): int
{
    if (!preg_match('/^\*(\d+)\r\n/', $buffer, $head)) {
        return 0;
    }
    $at = strlen($head[0]);
    for ($word = 0; $word < (int) $head[1]; ++$word) {
        if (!preg_match('/\G\$(\d+)\r\n/', $buffer, $size, 0, $at)) {
            return 0;
        }
        $at += strlen($size[0]) + (int) $size[1] + 2;
    }

    return $at <= strlen($buffer) ? $at : 0;
}

while (true) {
    $ready = [$server, ...$clients];
    $none = null;
    stream_select($ready, $none, $none, null);
    foreach ($ready as $stream) {
        if ($stream === $server) {
            $client = stream_socket_accept($server);
            $clients[(int) $client] = $client;
            $buffers[(int) $client] = '';
            continue;
        }
        $id = (int) $stream;
        $read = fread($stream, 65536);
        $buffers[$id] .= $read;
        $closes = $read === '' || $read === false;
        while (!$closes && ($length = command($buffers[$id])) > 0) {
            $buffers[$id] = substr($buffers[$id], $length);
            $closes = $answer === '';
            if (!$closes) {
                fwrite($stream, "-$answer\r\n");
            }
        }
        if ($closes) {
            fclose($stream);
            unset($clients[$id], $buffers[$id]);
        }
    }
}
