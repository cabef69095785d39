<?php
// For use without Composer.

declare(strict_types=1);

spl_autoload_register(static function (string $class): void {
    foreach (['Tagsweep\\Console\\' => 'src', 'Tagsweep\\Bridge\\' => 'bridge'] as $prefix => $folder) {
        $file = __DIR__ . "/$folder/" . substr($class, strlen($prefix)) . '.php';
        if (str_starts_with($class, $prefix) && is_file($file)) {
            require $file;
        }
    }
});
