<?php

declare(strict_types=1);

namespace Tagsweep\Console;

/** The command line is wrong. */
final class UsageError extends \InvalidArgumentException
{
}
