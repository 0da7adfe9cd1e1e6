//! A group as it is shown.
//!
//! PURE.

use towline_protocol::api::{ErrorBody, GroupView, RolloutBrief};

use super::Look;
use crate::fleet;
use crate::rollout::operations::{self, unknown_group};

/// Returns a group as it is shown.
///
/// # Errors
///
/// There is no such group.
pub fn view(look: &Look<'_>) -> Result<GroupView, ErrorBody> {
    let record = look.record().ok_or_else(|| unknown_group(&look.state.group))?;
    let rollout = look.state.going().map(|rollout| RolloutBrief {
        order: rollout.order(),
        kind: rollout.kind,
        state: rollout.state,
        reason: rollout.reason.clone(),
    });
    Ok(GroupView {
        group: look.state.group.clone(),
        policy: record.policy.clone(),
        target: look.target_view(),
        rollout,
        counts: fleet::counts(look.state, look.attendance),
        fallback: operations::goes_back_to(look.state),
        quarantine: record.quarantine.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fleet, GOOD, NEW, OLD, revision};
    use super::*;

    #[test]
    fn the_fallback_is_where_a_rollback_goes() {
        let none = Fleet::of(&["i-1"]);
        assert_eq!(view(&none.look()).unwrap().fallback, None, "nothing is proven");
        let mut fleet = Fleet::of(&["i-1"]).proven(&[OLD, GOOD]).released(NEW);
        assert_eq!(view(&fleet.look()).unwrap().fallback, Some(revision(GOOD)));
        fleet = fleet.quarantined(GOOD);
        assert_eq!(view(&fleet.look()).unwrap().fallback, Some(revision(OLD)), "not what is bad");
    }

    #[test]
    fn a_rollout_that_has_ended_is_none() {
        let fleet = Fleet::of(&["i-1"]).released(NEW);
        assert_eq!(view(&fleet.look()).unwrap().rollout.unwrap().order.generation, 1);
        let fleet = fleet.converged();
        let seen = view(&fleet.look()).unwrap();
        assert_eq!((seen.rollout, seen.target.unwrap().revision), (None, Some(revision(NEW))));
    }

    #[test]
    fn a_group_that_was_removed_is_not_shown() {
        let mut fleet = Fleet::of(&["i-1"]);
        fleet.state.record = None;
        assert!(view(&fleet.look()).is_err());
    }
}
