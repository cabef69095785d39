<?php

declare(strict_types=1);

use PHPUnit\Framework\TestCase;

/** The stubs (the PHP manual) say what the built extension is. */
final class StubsTest extends TestCase
{
    public function testTheStubsAreTheReflectionOfTheExtension(): void
    {
        $process = proc_open([PHP_BINARY, __DIR__ . '/reflect.php', __DIR__ . '/../stubs/tagsweep.stub.php'], [1 => ['pipe', 'w']], $pipes);
        $stubs = stream_get_contents($pipes[1]);
        proc_close($process);
        [, $built] = (new Run([__DIR__ . '/reflect.php']))->end();
        self::assertJson($stubs);
        self::assertNotSame('[]', trim($built));
        self::assertSame(json_decode($stubs, true), json_decode($built, true));
    }

    public function testEverythingInTheStubsIsExplained(): void
    {
        $stubs = file_get_contents(__DIR__ . '/../stubs/tagsweep.stub.php');
        preg_match_all('/^(.*)\n +public (?:static )?function (\w+)/m', $stubs, $found, PREG_SET_ORDER);
        self::assertNotEmpty($found);
        foreach ($found as [, $before, $name]) {
            self::assertStringContainsString('*/', $before, "$name has no comment");
        }
    }
}
