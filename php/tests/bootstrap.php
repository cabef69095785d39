<?php

declare(strict_types=1);

extension_loaded('tagsweep') || exit("tagsweep is not loaded: run `make test`\n");
require __DIR__ . '/../glue/autoload.php';
require __DIR__ . '/Server.php';
require __DIR__ . '/Run.php';
