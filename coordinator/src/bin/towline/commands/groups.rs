//! Groups: what they are to be, what they run, what they refuse.

use std::io::{self, Read};
use std::path::Path;

use reqwest::Method;
use serde::Serialize;
use serde_json::json;
use towline_protocol::api::{Because, SkewView};
use towline_protocol::fleet::Quarantined;
use towline_protocol::ids::Group;
use towline_protocol::policy::Policy;

use crate::arguments::{GroupCommand, QuarantineCommand};
use crate::commands::{CommandError, Context, Ended};
use crate::config::{read_small, wrong};
use crate::render::{Line, lists, skew};

/// The largest group file on standard input, in bytes.
const INPUT_BYTES_MAX: u64 = 64 * 1024;

/// Does what was asked about groups.
pub(crate) async fn run(context: &Context<'_>, command: GroupCommand) -> Ended {
    match command {
        GroupCommand::Set { group, file } => {
            // Checked here first: nothing is sent that would be refused, and the line is known.
            let policy = read_policy(&group, &file)?;
            let path = ["groups", group.as_str()];
            context.client.change_only(Method::PUT, &path, &policy).await?;
            context.screen.remark(&format!("{group} is set"));
            show(context, &group).await
        }
        GroupCommand::Show { group } => show(context, &group).await,
        GroupCommand::List => {
            let groups = context.groups(None).await?;
            context.answer("groups", &groups, || lists::groups(&groups, context.screen.width()))
        }
        GroupCommand::Remove { group } => {
            context.client.delete(&["groups", group.as_str()]).await?;
            context.done("removed", &json!({"group": group}), &format!("{group} is removed"))
        }
    }
}

async fn show(context: &Context<'_>, group: &Group) -> Ended {
    let view = context.group(group).await?;
    context.answer("group", &view, || lists::group(&view, context.now()))
}

fn read_policy(group: &Group, path: &Path) -> Result<Policy, CommandError> {
    let read = || {
        if path != Path::new("-") {
            return read_small(path);
        }
        let mut text = String::new();
        io::stdin().lock().take(INPUT_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|source| CommandError::Read { path: path.to_owned(), source })?;
    let policy: Policy = toml::from_str(&text).map_err(|error| CommandError::Parse {
        path: path.to_owned(),
        said: wrong(&text, &error),
    })?;
    policy.check().map_err(|source| CommandError::Policy {
        group: group.clone(),
        path: path.to_owned(),
        source,
    })
}

/// Shows which revisions run, group by group.
pub(crate) async fn skew(context: &Context<'_>, group: Option<Group>) -> Ended {
    let groups = match group {
        Some(group) => vec![group],
        None => context.groups(None).await?.into_iter().map(|view| view.group).collect(),
    };
    let mut views: Vec<SkewView> = Vec::new();
    for group in &groups {
        views.push(context.client.get(&["groups", group.as_str(), "skew"], &[]).await?);
    }
    for view in views.iter().filter(|view| !view.has_mirror) {
        let group = &view.group;
        context.screen.remark(&format!("{group} has no mirror: subjects and ages are not known"));
    }
    if views.is_empty() {
        context.screen.remark("there is no group yet; next: towline group set GROUP --file FILE");
    }
    context.answer("skews", &views, || {
        let mut lines = Vec::new();
        for (index, view) in views.iter().enumerate() {
            if index > 0 {
                lines.push(Line::plain(""));
            }
            lines.extend(skew::skew(view, context.now(), context.screen.width()));
        }
        lines
    })
}

/// A group and what it refuses.
#[derive(Debug, Serialize)]
struct Refused<'a> {
    group: &'a Group,
    quarantine: &'a [Quarantined],
}

/// Lists or lifts quarantines.
pub(crate) async fn quarantine(context: &Context<'_>, command: QuarantineCommand) -> Ended {
    match command {
        QuarantineCommand::List { group } => {
            let groups = context.groups(group).await?;
            let all: Vec<(Group, Vec<Quarantined>)> =
                groups.into_iter().map(|view| (view.group, view.quarantine)).collect();
            let refused = all.iter().map(|(group, quarantine)| Refused { group, quarantine });
            let refused: Vec<_> = refused.collect();
            context.answer("quarantines", &refused, || {
                lists::quarantine(&all, context.now(), context.screen.width())
            })
        }
        QuarantineCommand::Lift { group, revision, reason } => {
            let view = context.group(&group).await?;
            let found = lists::find(&view.quarantine, &revision).map_err(|number| {
                CommandError::Quarantine { group: group.clone(), beginning: revision, number }
            })?;
            let path = ["groups", group.as_str(), "quarantine", found.as_str(), "lift"];
            context.client.change_only(Method::POST, &path, &Because { reason }).await?;
            let what = json!({"group": group, "revision": found});
            context.done("lifted", &what, &format!("{} may be released again", found.short()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::fs;

    use super::*;

    #[test]
    fn a_group_file_is_checked_before_it_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.toml");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            read_policy(&"web".parse().unwrap(), &path)
        };
        assert_eq!(read("batches = [\"50%\"]").unwrap().batches.len(), 2);
        let cases = [
            (
                "an unknown key is named, with its line and those that are known",
                "canery = 1\n",
                &["line 1", "canery", "`canary`", "`max_unavailable`"][..],
            ),
            ("an unknown key below another", "\nbake_s = { cannery = 1 }", &["line 2", "`batch`"]),
            ("a share above all", "max_unavailable = \"101%\"", &["101%", "line 1"]),
            ("batches that go down", "batches = [\"50%\", \"25%\"]", &["batches", "grow"]),
            ("no TOML", "canary = ", &["line 1"]),
            ("a line that goes down deep", &format!("canary = {}", "[".repeat(3_000)), &["line 1"]),
        ];
        for (rule, text, expected) in cases {
            let error = read(text).expect_err(rule);
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            let said = format!("{error}: {cause}");
            for word in expected {
                assert!(said.contains(word), "{rule}: {word} in {said}");
            }
            assert_eq!(said.lines().count(), 1, "{rule}: one line: {said}");
            assert!(error.hint().is_some(), "{rule}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(
            read_policy(&"web".parse().unwrap(), &path),
            Err(CommandError::Read { .. })
        ));
    }
}
