<?php
// For use without Composer.

declare(strict_types=1);

spl_autoload_register(static function (string $class): void {
    $prefix = 'Tagsweep\\Console\\';
    if (str_starts_with($class, $prefix)) {
        $file = __DIR__ . '/src/' . substr($class, strlen($prefix)) . '.php';
        if (is_file($file)) {
            require $file;
        }
    }
});
