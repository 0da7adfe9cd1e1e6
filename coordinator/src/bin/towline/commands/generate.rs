//! Files that are made: completions and man pages, from the same definition as the arguments, and a first
//! recipe.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use crate::arguments::command_line;
use crate::commands::{CommandError, Ended};
use crate::exit::Exit;
use crate::render::Screen;

/// Prints completions for a shell.
pub(crate) fn completions(screen: &Screen, shell: clap_complete::Shell) -> Ended {
    let script = script(shell);
    if screen.is_json() {
        screen.print_json("completions", &script)?;
    } else {
        screen.print_raw(&script)?;
    }
    Ok(Exit::Done)
}

fn script(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command_line(), "towline", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a first recipe, and tells what was seen. One that is there is left alone.
pub(crate) fn recipe(screen: &Screen, dir: &Path) -> Ended {
    let draft = crate::init::draft(dir)?;
    let path = &draft.path;
    let top = path.parent().unwrap_or(dir);
    let write = || -> io::Result<()> {
        // It may have come into being since the draft looked.
        fs::File::create_new(path)?.write_all(draft.text.as_bytes())
    };
    write().map_err(|source| CommandError::Write { dir: top.to_owned(), source })?;
    if !screen.is_json() {
        for note in &draft.notes {
            screen.remark(note);
        }
    }
    let said = format!(
        "wrote {}; next: towline-agent check {}, then commit it and push",
        path.display(),
        top.display()
    );
    screen.done("recipe", &json!({"path": path, "notes": draft.notes}), &said)?;
    Ok(Exit::Done)
}

/// Writes man pages, one for each command.
pub(crate) fn man(screen: &Screen, dir: &Path) -> Ended {
    let failed = |source| CommandError::Write { dir: dir.to_owned(), source };
    let pages = write_pages(dir).map_err(failed)?;
    let said = format!("{pages} man pages are in {}", dir.display());
    screen.done("man", &json!({"dir": dir, "pages": pages}), &said)?;
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
    use towline_protocol::recipe;

    use super::*;

    #[test]
    fn every_shell_gets_completions() {
        for shell in clap_complete::Shell::value_variants() {
            let script = script(*shell);
            assert!(script.contains("towline") && script.contains("quarantine"), "{shell}");
        }
    }

    #[test]
    fn a_recipe_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("package.json"), "{\"scripts\":{\"start\":\"node .\"}}").unwrap();
        let screen = || Screen::captured(false, Box::new(io::sink()), Box::new(io::sink()));
        recipe(&screen(), dir.path()).unwrap();
        let path = dir.path().join("towline.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(recipe::Recipe::parse(&text).is_ok(), "{text}");
        fs::write(&path, "# own").unwrap();
        assert!(matches!(recipe(&screen(), dir.path()), Err(CommandError::Init(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "# own", "it is left alone");
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
