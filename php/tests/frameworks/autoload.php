<?php

declare(strict_types=1);

/** Loads classes of an unpacked framework: Debian keeps them under their full names. */
function load_framework(string $framework): void
{
    is_dir("$framework/usr/share/php") || exit("$framework is missing; run tools/packages.sh\n");
    spl_autoload_register(static function (string $class) use ($framework): void {
        foreach (['', 'Illuminate/Macroable/', 'Illuminate/Conditionable/', 'Illuminate/Collections/'] as $room) {
            $file = "$framework/usr/share/php/" . ($room === '' ? str_replace('\\', '/', $class)
                : $room . str_replace(['Illuminate\\Support\\', '\\'], ['', '/'], $class)) . '.php';
            if (is_file($file)) {
                require_once $file;

                return;
            }
        }
    });
}
