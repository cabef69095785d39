//! `tagsweep generate`: what a package of this program installs beside it, made from the command line
//! itself.

use crate::args::{Args, GenerateArgs, Generated};
use crate::{Done, exit};
use clap::CommandFactory;
use clap_complete::Shell;

pub(crate) fn generate(args: &GenerateArgs) -> Done {
    std::fs::create_dir_all(&args.folder)?;
    let shell = match args.what {
        Generated::Man => {
            clap_mangen::generate_to(Args::command(), &args.folder)?;
            return Ok(exit::DONE);
        }
        Generated::Bash => Shell::Bash,
        Generated::Fish => Shell::Fish,
        Generated::Zsh => Shell::Zsh,
    };
    clap_complete::generate_to(shell, &mut Args::command(), "tagsweep", &args.folder)?;
    Ok(exit::DONE)
}
