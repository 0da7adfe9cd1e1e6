//! Who asks, and what they may.
//!
//! ```text
//!   headers, door ──► Keys::check ──► Caller ──► may it? ──► how often? ──► the request's extensions
//! ```

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use towline_protocol::api::{
    Code, ErrorBody, JoinSecret, Role, TokenCreated, TokenRequest, TokenView,
};
use towline_protocol::ids::{Group, Instance};
use towline_protocol::poll::{Join, Joined};

use super::Api;
use super::errors::Refused;
use crate::records::Draft;
use crate::rollout::operations::Act;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Anybody, where no tokens are asked for: on loopback, or by an explicit word.
    Open,
    /// Whoever has an operator's token, or came by the Unix socket.
    Operator {
        /// The person's or the job's name.
        name: String,
        /// What they may do.
        role: Role,
        /// What the token is known by.
        id: String,
    },
    /// An agent, by its own token.
    Agent {
        /// Its group.
        group: Group,
        /// Its instance.
        instance: Instance,
    },
    /// Whoever has a group's join secret.
    Join {
        /// The group.
        group: Group,
    },
}

impl Caller {
    /// Returns who is noted with what they do.
    #[must_use]
    pub fn by(&self) -> String {
        match self {
            Caller::Open => "operator".to_owned(),
            Caller::Operator { name, .. } => crate::views::told::line(name),
            Caller::Agent { group, instance } => format!("agent {group} {instance}"),
            Caller::Join { group } => format!("join secret of {group}"),
        }
    }

    /// Returns what tells them from all others, as a part of a key of the store.
    #[must_use]
    pub fn actor(&self) -> String {
        match self {
            Caller::Open => "open".to_owned(),
            Caller::Operator { id, .. } => format!("token-{id}"),
            Caller::Agent { group, instance } => format!("agent/{group}/{instance}"),
            Caller::Join { group } => format!("join/{group}"),
        }
    }

    /// May they do what an agent of this instance does?
    pub(crate) fn may_act_as(&self, group: &Group, instance: &Instance) -> Result<(), Refused> {
        match self {
            Caller::Open => Ok(()),
            Caller::Agent { group: own, instance: name } if (own, name) == (group, instance) => {
                Ok(())
            }
            _ => Err(forbidden(format!("this token is not that of {instance} in {group}"))),
        }
    }

    /// May they let an instance join this group?
    pub(crate) fn may_join(&self, group: &Group) -> Result<(), Refused> {
        match self {
            Caller::Open => Ok(()),
            Caller::Join { group: own } if own == group => Ok(()),
            _ => Err(forbidden(format!("this is not the join secret of {group}"))),
        }
    }
}

fn forbidden(message: String) -> Refused {
    Refused::new(Code::Forbidden, message)
}

/// Something to be stored, and what is answered once it is.
pub type Made<T> = Result<(Draft, T), ErrorBody>;

/// Answers something about tokens, when it has looked into the store.
pub type Ask<A, T> = Arc<dyn Fn(A) -> BoxFuture<'static, Result<T, ErrorBody>> + Send + Sync>;

/// Makes something that is stored by whoever asked, together with its own records.
pub type Make<A, T> = Arc<dyn Fn(A, Act) -> BoxFuture<'static, Made<T>> + Send + Sync>;

/// Says who asks, by the request's headers and the door it came by.
pub type Check = Arc<dyn Fn(&Parts) -> BoxFuture<'static, Result<Caller, ErrorBody>> + Send + Sync>;

/// What is asked of the keeper of tokens; each is wired where the coordinator starts.
#[derive(Clone)]
pub struct Keys {
    /// Who asks.
    pub check: Check,
    /// An instance joins: its own token.
    pub join: Make<Join, Joined>,
    /// A new token for an operator.
    pub create: Make<TokenRequest, TokenCreated>,
    /// All tokens.
    pub list: Ask<(), Vec<TokenView>>,
    /// The end of a token, by its id.
    pub revoke: Make<String, ()>,
    /// A new join secret of a group.
    pub join_secret: Make<Group, JoinSecret>,
    /// The end of an instance's own token, so that it can join again.
    pub dismiss: Make<(Group, Instance), ()>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// Which callers a route is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admit {
    /// Operators: viewers read, and all others change as well.
    Operators,
    /// Agents; each handler checks whose.
    Agents,
}

/// Finds out who asks, and turns away who may not, or comes too often.
pub(crate) async fn known(
    State((api, admit)): State<(Api, Admit)>,
    request: Request,
    next: Next,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let caller = match (api.keys().check)(&parts).await {
        Ok(caller) => caller,
        Err(error) => return Refused::from(error).into_response(),
    };
    if let Err(refused) =
        may(&caller, admit, &parts.method).and_then(|()| api.rates().take(&caller, admit))
    {
        return refused.into_response();
    }
    parts.extensions.insert(caller);
    next.run(Request::from_parts(parts, body)).await
}

fn may(caller: &Caller, admit: Admit, method: &Method) -> Result<(), Refused> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match (admit, caller) {
        (_, Caller::Open)
        | (Admit::Operators, Caller::Operator { role: Role::Operator, .. })
        | (Admit::Agents, Caller::Agent { .. } | Caller::Join { .. }) => Ok(()),
        (Admit::Operators, Caller::Operator { role: Role::Viewer, .. }) if reads => Ok(()),
        (Admit::Operators, Caller::Operator { .. }) => {
            let message = "this token may read, and change nothing".to_owned();
            let hint = "`towline token create NAME --role operator` makes another";
            Err(forbidden(message).hint(hint))
        }
        (Admit::Operators, _) => Err(forbidden("this token is no operator's".to_owned())),
        (Admit::Agents, Caller::Operator { .. }) => {
            Err(forbidden("this token is no agent's".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_what() {
        let group: Group = "web".parse().unwrap();
        let instance: Instance = "i-1".parse().unwrap();
        let operator =
            |role| Caller::Operator { name: "ada".to_owned(), role, id: "t1".to_owned() };
        let agent = Caller::Agent { group: group.clone(), instance };
        let join = Caller::Join { group };
        use Admit::{Agents, Operators};
        let cases = [
            ("a viewer reads", operator(Role::Viewer), Operators, Method::GET, true),
            ("a viewer looks", operator(Role::Viewer), Operators, Method::HEAD, true),
            ("a viewer changes nothing", operator(Role::Viewer), Operators, Method::POST, false),
            ("nor removes", operator(Role::Viewer), Operators, Method::DELETE, false),
            ("an operator changes", operator(Role::Operator), Operators, Method::PUT, true),
            ("an operator is no agent", operator(Role::Operator), Agents, Method::POST, false),
            ("an agent is no operator", agent.clone(), Operators, Method::GET, false),
            ("an agent is one", agent, Agents, Method::POST, true),
            ("a join secret reads nothing", join.clone(), Operators, Method::GET, false),
            ("it joins", join, Agents, Method::POST, true),
            ("where no tokens are asked for", Caller::Open, Operators, Method::POST, true),
        ];
        for (rule, caller, admit, method, expected) in cases {
            assert_eq!(may(&caller, admit, &method).is_ok(), expected, "{rule}");
        }
    }

    #[test]
    fn an_agent_is_itself_alone() {
        let id = |group: &str, instance: &str| -> (Group, Instance) {
            (group.parse().unwrap(), instance.parse().unwrap())
        };
        let (group, instance) = id("web", "i-1");
        let agent = Caller::Agent { group: group.clone(), instance };
        let acts = |caller: &Caller, group: &str, instance: &str| {
            let (group, instance) = id(group, instance);
            caller.may_act_as(&group, &instance).is_ok()
        };
        assert!(acts(&agent, "web", "i-1"));
        assert!(!acts(&agent, "web", "i-2"), "another instance");
        assert!(!acts(&agent, "api", "i-1"), "the same name in another group");
        assert!(agent.may_join(&group).is_err(), "a token is no join secret");
        let join = Caller::Join { group: group.clone() };
        assert!(!acts(&join, "web", "i-1"), "a join secret is no token");
        assert!(join.may_join(&group).is_ok());
        assert!(join.may_join(&"api".parse().unwrap()).is_err(), "another group's secret");
    }
}
