//! Where symbolic links lead, judged before any of them is followed.
//!
//! A link that leaves its tree leads somewhere else on every host, or nowhere; and one that climbs by
//! `..` from what is no folder may lead anywhere: from another link, a shared directory, an installed
//! tree. So both are refused, and what is left can be judged by its words.

use std::path::{Component, Path, PathBuf};

/// What is wrong with a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkFault {
    /// It leads out of the tree, or nowhere.
    Outside,
    /// It climbs from this place, which is no folder of the tree.
    Climbs(PathBuf),
}

/// Judges a link.
///
/// - `place`: where it lies, relative to the tree's root.
/// - `is_dir`: is there a folder at this place of the tree, and no link to one?
///
/// # Errors
///
/// See [`LinkFault`].
pub(crate) fn judge(
    place: &Path,
    target: &Path,
    is_dir: impl Fn(&Path) -> bool,
) -> Result<(), LinkFault> {
    // The kernel knows no such target; a path of one's own making may.
    if target.as_os_str().is_empty() || target.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(LinkFault::Outside);
    }
    let mut at = place.parent().unwrap_or(Path::new("")).to_owned();
    let mut climbs = None;
    for part in target.components() {
        match part {
            Component::Normal(name) => at.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if climbs.is_none() && !at.as_os_str().is_empty() && !is_dir(&at) {
                    climbs = Some(at.clone());
                }
                if !at.pop() {
                    return Err(LinkFault::Outside);
                }
            }
            Component::RootDir | Component::Prefix(_) => return Err(LinkFault::Outside),
        }
    }
    climbs.map_or(Ok(()), |place| Err(LinkFault::Climbs(place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_in_its_tree_at_every_step_and_climbs_from_folders_only() {
        let climbs = |place: &str| Err(LinkFault::Climbs(place.into()));
        let outside = Err(LinkFault::Outside);
        let cases = [
            ("a sibling", "a/b", "c", Ok(())),
            ("up to the root", "a/b", "../c", Ok(())),
            ("itself as a folder", "a/b", "./../a/c", Ok(())),
            ("a package's command", "node_modules/.bin/x", "../x/cli.js", Ok(())),
            ("out", "a/b", "../../c", outside.clone()),
            ("out and in again", "b", "../web/c", outside.clone()),
            ("in, out, in", "a/b", "../x/../../y", outside.clone()),
            ("absolute", "a/b", "/etc/passwd", outside.clone()),
            ("nothing", "a", "", outside.clone()),
            ("no path", "a", "b\0c", outside.clone()),
            ("up from a link", "a/b", "link/../c", climbs("a/link")),
            ("up from a file", "b", "a/file/../../c", climbs("a/file")),
            ("up from what is not there", "b", "none/../c", climbs("none")),
            ("out counts for more", "b", "link/../../c", outside),
        ];
        let dirs = ["a", "node_modules", "node_modules/.bin", "x"];
        for (rule, place, target, expected) in cases {
            let is_dir = |at: &Path| dirs.iter().any(|dir| at == Path::new(dir));
            assert_eq!(judge(Path::new(place), Path::new(target), is_dir), expected, "{rule}");
        }
    }
}
