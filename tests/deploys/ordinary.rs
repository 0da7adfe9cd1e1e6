//! What happens every day: first start, a code-only release, a lock file's change, nothing new.

use towline_tests::app::Kind;

use super::World;

#[test]
fn the_first_start_and_a_code_only_release() {
    let (mut world, first) = World::serving(Kind::Plain);
    assert_eq!(world.host.served().as_ref(), Some(&first));
    let second = world.commit_good();
    world.host.target(&second);
    let status = world.host.await_serving(&second);
    assert_eq!(status["evidence"], "served");
    assert_eq!(world.host.served().as_ref(), Some(&second));
}
