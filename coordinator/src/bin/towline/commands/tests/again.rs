//! What is asked for once more, what stands while it is watched, and ways back: said, and done once.

use super::*;

use towline_protocol::api::BatchStage;
use towline_protocol::rollout::Selector;

/// The rollout of the script, to some instances only; stands where they have it.
fn chosen(state: Stands, stage: BatchStage) -> RolloutView {
    let mut view = sample::rollout();
    view.only = Some(Selector::try_from("i-0a17".to_owned()).unwrap());
    view.state = state;
    view.reason = "the chosen instances have it".to_owned();
    view.batches.truncate(1);
    view.batches[0].stage = stage;
    view
}

/// A coordinator whose group is on 4f2c already: its rollout, and whether that goes on.
fn released(rollout: RolloutView) -> Script {
    let mut script = script();
    let (_, mut group) = script.answers["GET /v1/groups/web"].clone();
    group["target"]["revision"] = json!(sample::revision("4f2c91e0"));
    script.answers.insert("GET /v1/groups/web".to_owned(), (200, group));
    let mut plan = sample::plan();
    plan.batches.clear();
    plan.refused = Some(ErrorBody {
        code: towline_protocol::api::Code::Conflict,
        message: "4f2c91e is the target of web already".to_owned(),
        hint: None,
        field: None,
    });
    script.answers.insert("GET /v1/groups/web/plan".to_owned(), value(&plan));
    script.rollouts.insert(118, rollout);
    script
}

fn has_posted(outcome: &Outcome) -> bool {
    outcome.heard.iter().any(|heard| heard.starts_with("POST"))
}

#[tokio::test]
async fn a_release_that_is_done_is_done() {
    for line in ["release web 4f2c", "release web 4f2c --watch", "release web 4f2c --only i-1"] {
        let outcome = run(released(ended(Stands::Converged)), line).await;
        assert_eq!(outcome.exit, Exit::Done, "{line}: {outcome:?}");
        let said = "converged already, in generation 118: 10 of 10 serve 4f2c91e\n";
        assert!(outcome.out.ends_with(said), "{line}: {}", outcome.out);
        assert!(!has_posted(&outcome), "{line}: {outcome:?}");
    }
    let outcome = run(released(ended(Stands::Converged)), "release web 4f2c --json").await;
    let printed: Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(printed["rollout"]["state"], "converged");
}

#[tokio::test]
async fn a_release_that_goes_on_is_joined() {
    let mut script = released(sample::rollout());
    script.streams = vec![vec![sample::rollout(), ended(Stands::Converged)]].into();
    let outcome = run(script, "release web 4f2c --watch").await;
    assert_eq!(outcome.exit, Exit::Done, "{outcome:?}");
    assert!(outcome.out.contains("converged: 49 of 50 serve 4f2c91e"), "{}", outcome.out);
    assert!(outcome.beside.contains("has begun already"), "{}", outcome.beside);
    assert!(!has_posted(&outcome), "{outcome:?}");
    let outcome = run(released(sample::rollout()), "release web 4f2c").await;
    assert_eq!(outcome.exit, Exit::Done, "{outcome:?}");
    assert!(outcome.out.ends_with("generation 118; next: towline rollout watch web\n"));
}

#[tokio::test]
async fn what_is_another_release_is_refused_as_ever() {
    let paused = RolloutView { state: Stands::Paused, ..sample::rollout() };
    let cases = [
        ("to some only", sample::rollout(), "release web 4f2c --only i-1"),
        ("without one", ended(Stands::Converged), "release web 4f2c --without i-1"),
        ("it stands", paused, "release web 4f2c"),
        ("it stands for some", chosen(Stands::Paused, BatchStage::Passed), "release web 4f2c"),
        ("it was rolled back", ended(Stands::Aborted), "release web 4f2c"),
    ];
    for (rule, rollout, line) in cases {
        let outcome = run(released(rollout), line).await;
        assert_eq!(outcome.exit, Exit::Failed, "{rule}: {outcome:?}");
        assert!(outcome.beside.contains("is the target of web already"), "{rule}: {outcome:?}");
    }
    let outcome = run(released(ended(Stands::Converged)), "plan web 4f2c").await;
    assert_eq!(outcome.exit, Exit::Failed);
    let told: Vec<&str> = outcome.out.lines().collect();
    assert_eq!(told.len(), 3, "what it is, and how the group stands; no batches: {told:?}");
}

#[tokio::test]
async fn a_watch_ends_well_once_all_that_were_chosen_have_it() {
    for json in ["", " --json"] {
        let mut script = script();
        let begun = chosen(Stands::Running, BatchStage::Open);
        script.rollouts.insert(118, begun.clone());
        // An operator's pause is no end: somebody will resume it.
        let paused = chosen(Stands::Paused, BatchStage::Open);
        let done = chosen(Stands::Paused, BatchStage::Passed);
        let unbegun = chosen(Stands::Paused, BatchStage::Planned);
        script.streams = vec![vec![unbegun, begun, paused, done]].into();
        let outcome = run(script, &format!("rollout watch web{json}")).await;
        assert_eq!(outcome.exit, Exit::Done, "{outcome:?}");
        let end = "paused: only i-0a17 took part\n\
                   next: towline rollout resume web, or towline rollout abort web\n";
        assert!(!json.is_empty() || outcome.out.ends_with(end), "{}", outcome.out);
        let passed = outcome.out.contains("\"stage\":\"passed\"");
        assert!(json.is_empty() || passed, "the last one is told: {}", outcome.out);
    }
}

#[tokio::test]
async fn nothing_is_told_twice_or_out_of_order() {
    let mut script = script();
    let mut planned = sample::rollout();
    planned.batches[0].stage = BatchStage::Planned;
    script.answers.insert("POST /v1/groups/web/release".to_owned(), value(&planned));
    let begun = sample::rollout();
    script.streams =
        vec![vec![planned, begun.clone(), begun], vec![ended(Stands::Converged)]].into();
    let outcome = run(script, "release web 4f2c --watch --json").await;
    assert_eq!(outcome.exit, Exit::Done, "{outcome:?}");
    let told: Vec<Value> =
        outcome.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let stages: Vec<_> = told
        .iter()
        .map(|line| (&line["rollout"]["batches"][0]["stage"], &line["rollout"]["state"]))
        .map(|(stage, state)| format!("{} {}", stage.as_str().unwrap(), state.as_str().unwrap()))
        .collect();
    assert_eq!(stages, ["planned running", "open running", "open converged"]);
    assert!(
        !outcome.asked().contains(&"GET /v1/groups/web/rollout"),
        "an answer beside the stream may be newer than the stream: {:?}",
        outcome.asked()
    );
}

#[tokio::test]
async fn a_rollback_says_where_it_goes_and_goes_there() {
    let back = sample::revision("c81f0022");
    let with = |rollout: Value| {
        let mut script = script();
        let (_, mut group) = script.answers["GET /v1/groups/web"].clone();
        (group["fallback"], group["rollout"]) = (json!(back), rollout);
        script.answers.insert("GET /v1/groups/web".to_owned(), (200, group));
        let mut commit = sample::commit("c81f0022", "Bump undici");
        (commit.ahead, commit.behind) = (None, Some(2));
        let resolved = json!({"name": back, "on_branch": true, "commit": commit});
        script.answers.insert("GET /v1/groups/web/resolve".to_owned(), (200, resolved));
        let begun = value(&sample::rollout());
        script.answers.insert("POST /v1/groups/web/rollback".to_owned(), begun);
        script
    };
    let outcome = run(with(Value::Null), "rollback web").await;
    assert_eq!(outcome.exit, Exit::Done, "{outcome:?}");
    let expected = [
        "web goes back to c81f0022c81f0022c81f0022c81f0022c81f0022",
        "  \"Bump undici\" by Ada, 2 commits before 9b03d7a",
        "web: 10 live, 10 healthy",
        "plan: 10 instances in one batch, without a bake; at most 25% unavailable at a time",
        "rollout web, generation 118; next: towline rollout watch web",
        "",
    ];
    assert_eq!(outcome.out, expected.join("\n"));
    let sent = format!("POST /v1/groups/web/rollback {{\"revision\":\"{back}\"}}");
    assert_eq!(outcome.heard.last(), Some(&sent), "what was said, and nothing else");

    let brief = json!({
        "epoch": 1, "generation": 120, "kind": "release", "state": "running", "reason": "x",
    });
    let outcome = run(with(brief.clone()), "rollback web").await;
    let said = "\nthe rollout of generation 120, which is running, ends\n";
    assert!(outcome.out.contains(said), "{}", outcome.out);
    let mut script = with(brief);
    let (_, group) = script.answers.get_mut("GET /v1/groups/web").unwrap();
    group["fallback"] = Value::Null;
    let outcome = run(script, "rollback web").await;
    let said = "web goes back to what each instance served before\n";
    assert!(outcome.out.starts_with(said), "{}", outcome.out);
    assert_eq!(outcome.heard.last().unwrap(), "POST /v1/groups/web/rollback {}");
}

#[tokio::test]
async fn a_restart_that_is_held_says_so() {
    let order = |state: &str| {
        let mut script = script();
        let (_, mut group) = script.answers["GET /v1/groups/web"].clone();
        group["rollout"] = json!({
            "epoch": 1, "generation": 120, "kind": "release", "state": state, "reason": "x",
        });
        script.answers.insert("GET /v1/groups/web".to_owned(), (200, group));
        let path = "POST /v1/groups/web/instances/i-1/restart".to_owned();
        script.answers.insert(path, (204, Value::Null));
        script
    };
    let outcome = run(order("paused"), "restart web --instance i-1").await;
    assert_eq!(outcome.exit, Exit::Done, "{outcome:?}");
    let said =
        "the rollout of web is paused, and no permit is given meanwhile; next: towline rollout";
    assert!(outcome.beside.contains(said), "{}", outcome.beside);
    let outcome = run(order("running"), "restart web --instance i-1").await;
    assert!(!outcome.beside.contains("no permit is given"), "{}", outcome.beside);
}

#[tokio::test]
async fn errors_and_remarks_are_json_for_programs() {
    let mut script = script();
    let refusal = json!({"error": {
        "code": "conflict", "message": "it\u{1b} goes on", "hint": "wait", "field": "revision",
    }});
    script.answers.insert("POST /v1/groups/web/restart".to_owned(), (409, refusal));
    let outcome = run(script, "restart web --json").await;
    assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Failed, ""));
    let printed: Value = serde_json::from_str(&outcome.beside).unwrap();
    let expected = json!({"schema_version": 1, "error": {
        "code": "conflict", "message": "it goes on", "hint": "wait", "field": "revision",
    }});
    assert_eq!(printed, expected);
    let outcome = run(self::script(), "why ../x --json").await;
    let printed: Value = serde_json::from_str(&outcome.beside).unwrap();
    assert_eq!(printed["error"]["code"], "failed", "an error of the command's own");
    assert!(printed["error"]["hint"].is_string() && printed["error"]["field"].is_null());
    let mut script = self::script();
    let mut plan = sample::plan();
    plan.warnings = vec!["one silent".to_owned()];
    script.answers.insert("GET /v1/groups/web/plan".to_owned(), value(&plan));
    let outcome = run(script, "plan web 4f2c --json").await;
    let printed: Value = serde_json::from_str(&outcome.beside).unwrap();
    assert_eq!(printed["warning"], "one silent");
}
