<?php

declare(strict_types=1);

namespace Tagsweep\Console;

use Symfony\Component\Console\Command\Command;
use Symfony\Component\Console\Helper\ProgressBar;
use Symfony\Component\Console\Input\InputInterface;
use Symfony\Component\Console\Input\InputOption;
use Symfony\Component\Console\Output\ConsoleOutputInterface;
use Symfony\Component\Console\Output\OutputInterface;
use Symfony\Component\Console\Terminal as Screen;

/** `cache:tags:cleanup` for symfony/console. */
final class CacheTagsCleanupCommand extends Command
{
    /** @param string|null $url where no --url is given; null: REDIS_URL */
    public function __construct(#[\SensitiveParameter] private readonly ?string $url = null)
    {
        parent::__construct();
    }

    /** @return array<string, mixed> without the DSN, which may hold a password */
    public function __debugInfo(): array
    {
        return array_diff_key(get_object_vars($this), ['url' => null]);
    }

    protected function configure(): void
    {
        $this->setName('cache:tags:cleanup')
            ->setDescription('Removes stale references and orphaned cache tags, under a lock');
        foreach (Options::TABLE as $name => [$kind, , $description, $default]) {
            $mode = $kind === Options::FLAG ? InputOption::VALUE_NONE : InputOption::VALUE_REQUIRED;
            $this->addOption($name, null, $mode, $default === '' ? $description : "$description (default: $default)");
        }
    }

    protected function execute(InputInterface $input, OutputInterface $output): int
    {
        try {
            $options = new Options(array_intersect_key($input->getOptions(), Options::TABLE), $this->url);
        } catch (UsageError $e) {
            $this->screen($output, false, false)->error('Error: ' . $e->getMessage());

            return Cleanup::USAGE;
        }

        return (new Cleanup($options, $this->screen($output, $options->progress, $options->json)))->run();
    }

    private function screen(OutputInterface $output, bool $progress, bool $json): Output
    {
        return new class($output, $progress, $json) implements Output {
            private readonly OutputInterface $aside;
            private ?ProgressBar $bar = null;
            private float $last = 0.0;

            public function __construct(private readonly OutputInterface $output, private readonly bool $progress, private readonly bool $json)
            {
                $this->aside = $output instanceof ConsoleOutputInterface ? $output->getErrorOutput() : $output;
            }

            public function line(string $text): void
            {
                $this->output->writeln($text, OutputInterface::OUTPUT_RAW);
            }

            public function error(string $text): void
            {
                if ($this->json && $this->aside === $this->output) {
                    return; // the lines tell it, and nothing may come between them
                }
                // Also of a quiet command, as symfony/console does with its own.
                $this->aside->writeln($text, OutputInterface::OUTPUT_RAW | OutputInterface::VERBOSITY_QUIET);
            }

            public function progress(Progress $progress): void
            {
                if (!$this->aside->isDecorated()) {
                    $this->tell($progress);

                    return;
                }
                if ($this->bar === null) {
                    $this->bar = new ProgressBar($this->aside, 1000);
                    $this->bar->setFormat('[%bar%] %percent:3s% %  %message%');
                    $this->bar->setBarWidth(20);
                }
                $room = (new Screen())->getWidth() - 31;
                $this->bar->setMessage(substr($progress->text(), 0, max(1, $room)));
                $this->bar->setProgress((int) ($progress->share * 1000));
            }

            /** Where nothing moves: a line a second, if that was asked for. */
            private function tell(Progress $progress): void
            {
                if ($this->progress && microtime(true) - $this->last >= 1.0) {
                    $this->last = microtime(true);
                    $this->aside->writeln(Terminal::bar($progress), OutputInterface::OUTPUT_RAW);
                }
            }

            public function done(): void
            {
                $this->bar?->clear();
            }
        };
    }
}
