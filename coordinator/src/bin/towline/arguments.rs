//! What can be typed: commands, arguments and options. Names are checked here, once.

use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use towline_protocol::api::{Role, Status};
use towline_protocol::ids::{Group, Instance, Revision};
use towline_protocol::rollout::Selector;

use crate::exit;

/// The longest time for which a token is good, in seconds: 400 days.
const EXPIRES_MAX_S: u64 = 400 * 24 * 3600;

/// Says which revision a fleet should run, and shows what it runs.
#[derive(Debug, Parser)]
#[command(name = "towline", version, arg_required_else_help = true)]
#[command(subcommand_required = true, after_long_help = exit::help())]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: Options,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What goes for all commands.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Options {
    /// The coordinator's address, such as `https://towline.internal`; or `unix:` and the path of its socket.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) coordinator: Option<String>,
    /// Trust only the certificates in this file (PEM).
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The file that holds the token; others must not be able to read it.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Send the token to an address without TLS that is not on this host.
    #[arg(long, global = true)]
    pub(crate) insecure: bool,
    /// Print one JSON object with a schema version; while watching, one a line. Errors are JSON then, too.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say how a group takes its rollouts, or show it.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Take a group to a revision: canary first, then batch by batch.
    Release(Release),
    /// Show or steer the rollout of a group.
    #[command(subcommand)]
    Rollout(RolloutCommand),
    /// Take a group back: one batch, no bake time.
    Rollback {
        /// The group.
        group: Group,
        /// Where to: an abbreviation, branch, tag or full id; by default what `group show` calls its fallback.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        revision: Option<String>,
        /// Stay, and tell what happens until it has ended.
        #[arg(long)]
        watch: bool,
    },
    /// Start the app anew: of a whole group batch by batch, or of one instance.
    Restart {
        /// The group; with --instance it may be left out.
        #[arg(required_unless_present = "instance")]
        group: Option<Group>,
        /// Only this instance.
        #[arg(long)]
        instance: Option<Instance>,
        /// Why, in one line; it is kept.
        #[arg(long)]
        reason: Option<String>,
        /// Stay, and tell what happens until it has ended.
        #[arg(long, conflicts_with = "instance")]
        watch: bool,
    },
    /// Have an instance try again what it rejected, refused or waits for.
    Retry {
        /// Its group; it is looked up where it is left out.
        group: Option<Group>,
        /// The instance.
        #[arg(long)]
        instance: Instance,
        /// Why, in one line; it is kept.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Show which revisions run, and who is off target; of all groups by default.
    Skew {
        /// The group.
        group: Option<Group>,
    },
    /// List instances.
    Instances {
        /// Only those of this group.
        group: Option<Group>,
        /// Only those that stand like this.
        #[arg(long, value_parser = status_parser())]
        status: Option<Status>,
        /// Only those that serve this revision: its id, or the beginning of it.
        #[arg(long, value_parser = parse_beginning)]
        revision: Option<String>,
    },
    /// Say why a group or an instance is where it is, and what to do next.
    Why {
        /// A group, or an instance; a group's name wins.
        #[arg(value_name = "GROUP|INSTANCE")]
        subject: String,
        /// The instance's group; then the subject is an instance.
        #[arg(long)]
        group: Option<Group>,
    },
    /// Show what a release would do; nothing is changed.
    Plan(Proposal),
    /// Show what the last deploy's commands and the app said when it failed.
    Logs {
        /// The instance.
        instance: Instance,
        /// Its group; it is looked up where it is left out.
        #[arg(long)]
        group: Option<Group>,
    },
    /// List or close permits: stored leave to swap.
    #[command(subcommand)]
    Permit(PermitCommand),
    /// Drop an instance that is gone for good; its permit closes.
    Forget {
        /// The instance.
        instance: Instance,
        /// Its group; it is looked up where it is left out.
        #[arg(long)]
        group: Option<Group>,
        /// Why, in one line; it is kept.
        #[arg(long)]
        reason: Option<String>,
    },
    /// List or lift the commits that a group refuses.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// Make, list or revoke tokens.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Make a new join secret for a group, and print it once; the one before ends.
    JoinSecret {
        /// The group.
        group: Group,
    },
    /// Write a first recipe, towline.toml, at the top of a repository, from what it shows.
    Init {
        /// The repository's work tree, or the folder of it that is the app.
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write man pages into a directory.
    Man {
        /// The directory; it is made where it is missing.
        dir: PathBuf,
    },
}

/// Commands about groups.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Make a group, or change how it takes its rollouts; a rollout that goes on keeps what it began with.
    Set {
        /// The group.
        group: Group,
        /// What it is to be, as TOML; `-` reads standard input.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Show a group.
    Show {
        /// The group.
        group: Group,
    },
    /// List all groups.
    List,
    /// Remove a group that has no instances, and of which no rollout runs.
    Remove {
        /// The group.
        group: Group,
    },
}

/// What would be released, and to whom.
#[derive(Debug, Clone, Args)]
pub(crate) struct Proposal {
    /// The group.
    pub(crate) group: Group,
    /// The revision: an abbreviation, branch, tag or full id.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) revision: String,
    /// Only these instances; then it stands until it is resumed. Names, or beginnings that end in `*`.
    #[arg(long, value_name = "SELECTOR", value_parser = parse_selector)]
    pub(crate) only: Option<Selector>,
    /// Without this instance until it polls again; may be repeated.
    #[arg(long, value_name = "INSTANCE", value_delimiter = ',')]
    pub(crate) without: Vec<Instance>,
}

/// `release`: a proposal that is carried out.
#[derive(Debug, Args)]
pub(crate) struct Release {
    #[command(flatten)]
    pub(crate) proposal: Proposal,
    /// Stay, and tell what happens until it has ended.
    #[arg(long)]
    pub(crate) watch: bool,
}

/// Commands about the rollout that goes on, or went last.
#[derive(Debug, Subcommand)]
pub(crate) enum RolloutCommand {
    /// Show how it stands.
    Show {
        /// The group.
        group: Group,
        /// An earlier one, by its generation.
        #[arg(long)]
        generation: Option<u64>,
    },
    /// Tell what happens until it has ended; Ctrl-C detaches.
    Watch {
        /// The group.
        group: Group,
    },
    /// Stop it for now: no further instance gets leave to swap.
    Pause(Steer),
    /// Let it go on.
    Resume(Steer),
    /// End it, and take the group back.
    Abort(Steer),
    /// Skip the rest of the bake time of the batch that bakes.
    Promote(Steer),
}

/// Whose rollout, and why.
#[derive(Debug, Args)]
pub(crate) struct Steer {
    /// The group.
    pub(crate) group: Group,
    /// Why, in one line; it is kept.
    #[arg(long)]
    pub(crate) reason: Option<String>,
}

/// Commands about permits.
#[derive(Debug, Subcommand)]
pub(crate) enum PermitCommand {
    /// List the open ones; of all groups by default.
    List {
        /// The group.
        group: Option<Group>,
    },
    /// Close one by hand. Its holder may swap all the same: be sure that it is gone or at rest.
    Close {
        /// Who holds it.
        instance: Instance,
        /// Its group; it is looked up where it is left out.
        #[arg(long)]
        group: Option<Group>,
        /// Why, in one line; it is kept.
        #[arg(long)]
        reason: String,
    },
}

/// Commands about the quarantine.
#[derive(Debug, Subcommand)]
pub(crate) enum QuarantineCommand {
    /// List the commits that are refused; of all groups by default.
    List {
        /// The group.
        group: Option<Group>,
    },
    /// Let a commit be released again.
    Lift {
        /// The group.
        group: Group,
        /// The commit: its id, or the beginning of it.
        #[arg(value_parser = parse_beginning)]
        revision: String,
        /// Why, in one line; it is kept.
        #[arg(long)]
        reason: Option<String>,
    },
}

/// Commands about tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token, and print it once.
    Create {
        /// Whose it is: a person's or a job's name.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// What it may do.
        #[arg(long, value_enum, default_value = "viewer")]
        role: RoleName,
        /// For how long it is good: 30d, 12h, 45min; at most 400d.
        #[arg(long, value_name = "TIME", default_value = "90d", value_parser = parse_expiry_s)]
        expires: u64,
    },
    /// List tokens.
    List,
    /// End a token now.
    Revoke {
        /// What `token list` knows it by.
        id: String,
    },
}

/// A role, as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// Read.
    Viewer,
    /// Read and change.
    Operator,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Role {
        match name {
            RoleName::Viewer => Role::Viewer,
            RoleName::Operator => Role::Operator,
        }
    }
}

/// Returns the whole command line as clap knows it, for completions and man pages.
pub(crate) fn command_line() -> clap::Command {
    Arguments::command()
}

fn status_parser() -> impl TypedValueParser<Value = Status> {
    const ALL: [Status; 6] = [
        Status::Converged,
        Status::Stale,
        Status::Degraded,
        Status::Unhealthy,
        Status::Unknown,
        Status::Silent,
    ];
    PossibleValuesParser::new(ALL.map(Status::as_str)).try_map(|word| {
        ALL.into_iter().find(|status| status.as_str() == word).ok_or("not the word for a status")
    })
}

fn parse_selector(text: &str) -> Result<Selector, String> {
    Selector::try_from(text.to_owned())
}

/// A revision's id, or at least four digits of it, in lower case.
fn parse_beginning(text: &str) -> Result<String, String> {
    let is_beginning =
        (4..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_beginning {
        return Ok(text.to_ascii_lowercase());
    }
    Err("use 4 or more hexadecimal digits of the commit's id".to_owned())
}

fn parse_expiry_s(text: &str) -> Result<u64, String> {
    const ACCEPTED: &str = "use a time such as 30d, 12h or 45min, of at most 400d";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit_s = match &text[digits..] {
        "d" => 24 * 3600,
        "h" => 3600,
        "min" => 60,
        "s" => 1,
        _ => return Err(ACCEPTED.to_owned()),
    };
    let number: Option<u64> = text[..digits].parse().ok();
    let expires_s = number.and_then(|number| number.checked_mul(unit_s));
    expires_s
        .filter(|expires_s| (1..=EXPIRES_MAX_S).contains(expires_s))
        .ok_or_else(|| ACCEPTED.to_owned())
}

/// Returns the revision that a text names by itself: a full id.
pub(crate) fn full_id(text: &str) -> Option<Revision> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        let words = std::iter::once("towline").chain(line.split_whitespace());
        Arguments::try_parse_from(words)
    }

    #[test]
    fn the_definition_holds_together() {
        command_line().debug_assert();
    }

    #[test]
    fn every_command_parses() {
        let lines = [
            "group set web --file web.toml",
            "group set web --file -",
            "group show web",
            "group list",
            "group remove web",
            "release web 4f2c",
            "release web v1.2 --watch --only i-0a17,i-0b* --without i-1 --without i-2,i-3",
            "rollout show web",
            "rollout show web --generation 118",
            "rollout watch web --json",
            "rollout pause web",
            "rollout pause web --reason lunch",
            "rollout resume web",
            "rollout abort web --reason bad",
            "rollout promote web",
            "rollback web",
            "rollback web 9b03d7a --watch",
            "restart web",
            "restart web --watch",
            "restart web --instance i-1",
            "restart --instance i-1",
            "retry web --instance i-1",
            "retry --instance i-1 --reason fixed",
            "skew",
            "skew web",
            "instances",
            "instances web --status silent --revision 4F2C",
            "why web",
            "why i-1 --group web",
            "plan web main --without i-1",
            "logs i-1",
            "logs i-1 --group web",
            "permit list",
            "permit list web",
            "permit close i-1 --reason terminated",
            "forget i-1",
            "forget i-1 --group web --reason terminated",
            "quarantine list",
            "quarantine lift web 4f2c91e",
            "token create ada",
            "token create ci --role operator --expires 30d",
            "token list",
            "token revoke t1",
            "join-secret web",
            "init",
            "init services/web",
            "completions bash",
            "man /tmp/x",
            "--coordinator https://a --ca-file c --token-file t skew",
            "skew --coordinator https://a --insecure",
        ];
        for line in lines {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_wrong_usage() {
        let lines = [
            ("no such command", "frobnicate"),
            ("a group with a slash", "release we/b 4f2c"),
            ("a group with a leading dot", "group show .web"),
            ("no revision", "release web"),
            ("no group file", "group set web"),
            ("a selector with a gap", "release web 4f2c --only i-1,,i-2"),
            ("an instance that is none", "release web 4f2c --without ../x"),
            ("neither group nor instance", "restart"),
            ("one instance is not watched", "restart --instance i-1 --watch"),
            ("retry needs an instance", "retry web"),
            ("a status that is none", "instances --status fine"),
            ("a branch is no beginning of an id", "instances --revision main"),
            ("closing needs a reason", "permit close i-1"),
            ("longer than allowed", "token create ada --expires 401d"),
            ("for no time at all", "token create ada --expires 0d"),
            ("a time without a unit", "token create ada --expires 30"),
            ("a role that is none", "token create ada --role root"),
            ("a token in the arguments", "skew --token secret"),
            ("an unknown shell", "completions tcl"),
        ];
        for (rule, line) in lines {
            let error = parse(line).map(|_| ()).expect_err(rule);
            assert_eq!(error.exit_code(), i32::from(exit::Exit::Usage.code()), "{rule}");
        }
    }

    #[test]
    fn values_are_read_as_they_are_meant() {
        let Command::Release(release) =
            parse("release web main --without i-1,i-2 --without i-3").unwrap().command
        else {
            panic!("a release");
        };
        let names: Vec<_> = release.proposal.without.iter().map(Instance::as_str).collect();
        assert_eq!(names, ["i-1", "i-2", "i-3"]);
        assert!(!release.watch);
        for (text, expires_s) in [("400d", EXPIRES_MAX_S), ("12h", 43_200), ("45min", 2_700)] {
            assert_eq!(parse_expiry_s(text), Ok(expires_s), "{text}");
        }
        assert!(parse_expiry_s("99999999999999999999d").is_err(), "an overflow");
        assert_eq!(parse_beginning("4F2C").as_deref(), Ok("4f2c"));
    }

    #[test]
    fn a_name_of_nothing_is_none() {
        for words in [["release", "web", ""], ["token", "create", ""], ["rollback", "web", ""]] {
            let words = std::iter::once("towline").chain(words);
            assert!(Arguments::try_parse_from(words.clone()).is_err(), "{words:?}");
        }
    }
}
