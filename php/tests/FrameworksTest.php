<?php

declare(strict_types=1);

use PHPUnit\Framework\TestCase;

/** The bridges with the frameworks' own packages, each version in a process of its own. */
final class FrameworksTest extends TestCase
{
    /** @return iterable<string, array{string, string, int}> */
    public static function versions(): iterable
    {
        foreach (['symfony' => 42, 'laravel' => 47] as $framework => $checks) {
            foreach (['bookworm', 'trixie'] as $suite) {
                yield "$framework of $suite" => [$framework, $suite, $checks];
            }
        }
    }

    /** @dataProvider versions */
    public function testTheFrameworksOwnLocksWorkOnTopOfOurs(string $framework, string $suite, int $checks): void
    {
        $server = new Server(tcp: true);
        $folder = dirname(__DIR__, 2) . "/target/packages/$framework-$suite";
        self::assertFileExists("$folder/complete", 'run tools/packages.sh');
        $run = new Run(['-d', 'error_reporting=' . (E_ALL & ~E_DEPRECATED), __DIR__ . "/frameworks/$framework.php", $folder, $server->dsn()]);
        [$status, $output, $errors] = $run->end();
        self::assertStringEndsWith("done\n", $output, $errors);
        self::assertSame([0, ''], [$status, $errors]);
        self::assertSame($checks, substr_count($output, "ok "), $output);
    }
}
