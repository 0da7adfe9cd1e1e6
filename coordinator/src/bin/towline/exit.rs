//! How the command ends: its exit codes, in one table. `--help` shows the same table.

use std::process::ExitCode;

/// How the command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked for is done.
    Done,
    /// It failed, or was refused.
    Failed,
    /// The arguments make no sense.
    Usage,
    /// The rollout that was watched halted, was rolled back or was replaced.
    Stopped,
    /// Nothing is wrong that waiting could not mend.
    TryLater,
    /// The command's own set-up is wrong.
    Config,
    /// Watching was ended before the rollout was.
    Detached,
}

/// All of them, with what they mean.
const MEANINGS: &[(Exit, &str)] = &[
    (
        Exit::Done,
        "done; of --watch and `rollout watch`: the rollout converged, or all that --only chose have it",
    ),
    (Exit::Failed, "failed, or refused by the coordinator"),
    (Exit::Usage, "wrong usage"),
    (Exit::Stopped, "the rollout that was watched halted, was rolled back or was replaced"),
    (Exit::TryLater, "try later: the coordinator cannot be reached, or is busy"),
    (Exit::Config, "wrong configuration of this command"),
    (Exit::Detached, "Ctrl-C, or a reader that went away, ended the watching; the rollout goes on"),
];

impl Exit {
    /// Returns the number that the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Stopped => 3,
            Exit::TryLater => 75,
            Exit::Config => 78,
            Exit::Detached => 130,
        }
    }

    /// Returns the word for an error that ends it so, as programs read it, where nobody has a better one.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Exit::TryLater => "unavailable",
            Exit::Config => "configuration",
            Exit::Usage => "usage",
            _ => "failed",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Returns what `--help` says after everything else.
pub(crate) fn help() -> String {
    let mut text = String::from("Exit codes:\n");
    for (exit, meaning) in MEANINGS {
        text.push_str(&format!("  {:>3}  {meaning}\n", exit.code()));
    }
    text.push_str(
        "\nWhere the coordinator is, and who asks, the first that is given:\n  \
         --coordinator, TOWLINE_COORDINATOR, `coordinator` in the config, http://127.0.0.1:7617\n  \
         --ca-file, TOWLINE_CA_FILE, `ca_file` in the config\n  \
         --token-file, TOWLINE_TOKEN_FILE, TOWLINE_TOKEN (the token itself), `token_file` in the config\n\
         The config is ~/.config/towline/config.toml; its token and CA go to its own coordinator only.\n\n\
         Answers go to standard output, everything else to standard error. Times of day are UTC, and end \
         in Z.\nColours are used on a terminal, unless NO_COLOR is set.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_is_told_once() {
        let codes: Vec<u8> = MEANINGS.iter().map(|(exit, _)| exit.code()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 75, 78, 130]);
        let help = help();
        for (_, meaning) in MEANINGS {
            assert!(help.contains(meaning), "{meaning}");
        }
    }
}
