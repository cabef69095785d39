<?php
// The command of the PHP design, as applications have it.

namespace YourFramework\Console\Commands;

use YourFramework\Cache\TagCleanupManager;

class CacheTagCleanup
{
    private $cleanupManager;

    public function __construct(TagCleanupManager $cleanupManager)
    {
        $this->cleanupManager = $cleanupManager;
    }

    public function handle(): void
    {
        try {
            $cleaned = $this->cleanupManager->cleanup();
            echo "Cleaned up {$cleaned} orphaned cache tags.\n";
        } catch (\Exception $e) {
            echo "Error during cache tag cleanup: {$e->getMessage()}\n";
        }
    }
}
