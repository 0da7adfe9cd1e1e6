//! Completions and man pages, made from the same definition as the arguments.

use std::fs;
use std::io;
use std::path::Path;

use crate::arguments::command_line;
use crate::commands::{CommandError, Ended};
use crate::exit::Exit;
use crate::render::Screen;

/// Prints completions for a shell.
pub(crate) fn completions(screen: &Screen, shell: clap_complete::Shell) -> Ended {
    screen.print_raw(&script(shell))?;
    Ok(Exit::Done)
}

fn script(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command_line(), "towline", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes man pages, one for each command.
pub(crate) fn man(screen: &Screen, dir: &Path) -> Ended {
    let failed = |source| CommandError::Write { dir: dir.to_owned(), source };
    let pages = write_pages(dir).map_err(failed)?;
    screen.remark(&format!("{pages} man pages are in {}", dir.display()));
    Ok(Exit::Done)
}

fn write_pages(dir: &Path) -> io::Result<usize> {
    fs::create_dir_all(dir)?;
    // `generate_to` names pages after the whole path of a command: towline-rollout-show.1.
    let mut command = command_line().disable_help_subcommand(true);
    command.build();
    clap_mangen::generate_to(command, dir)?;
    let is_page = |entry: &io::Result<fs::DirEntry>| {
        entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("towline"))
    };
    Ok(fs::read_dir(dir)?.filter(is_page).count())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_gets_completions() {
        for shell in clap_complete::Shell::value_variants() {
            let script = script(*shell);
            assert!(script.contains("towline") && script.contains("quarantine"), "{shell}");
        }
    }

    #[test]
    fn every_command_gets_a_man_page() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("man/man1");
        let pages = write_pages(&dir).unwrap();
        assert!(pages > 30, "{pages}");
        for name in ["towline.1", "towline-release.1", "towline-rollout-watch.1"] {
            assert!(fs::read_to_string(dir.join(name)).unwrap().contains(".SH NAME"), "{name}");
        }
        let main = fs::read_to_string(dir.join("towline.1")).unwrap();
        assert!(main.contains("Exit codes"), "{main}");
    }
}
