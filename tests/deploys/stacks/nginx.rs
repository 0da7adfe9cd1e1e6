//! nginx as the manager: told by SIGHUP, with the pages and the configuration of `current`.

use super::*;

const START: &str = "#!/bin/sh\n# From /, since its workers stay where it was started.\nlive=$PWD\ncd /\n\
                     exec /usr/sbin/nginx -p \"$live\" -c \"$live/nginx.conf\"\n";

fn config(world: &World, more: &str) -> String {
    let port = world.host.port;
    format!(
        "pid run/nginx.pid;\nerror_log stderr;\nworker_processes 2;\nevents {{}}\nhttp {{\n  access_log \
         off;\n  client_body_temp_path run/body;\n  proxy_temp_path run/proxy;\n  fastcgi_temp_path \
         run/fastcgi;\n  uwsgi_temp_path run/uwsgi;\n  scgi_temp_path run/scgi;\n  server {{\n    listen \
         127.0.0.1:{port};\n    root public;\n    location = /revision {{ alias \
         .towline-revision; }}\n    {more}\n  }}\n}}\n"
    )
}

fn recipe(world: &World) -> String {
    format!(
        "[manager]\npid_file = \"run/nginx.pid\"\nreload = \"SIGHUP\"\nstart = \
         [\"./bin/start\"]\ntimeout_s = 8\n{}\n[shared]\ndirs = [\"run\"]\n",
        health(world, "/revision", "revision = \"body\"")
    )
}

#[test]
fn nginx_is_deployed_broken_and_restored() {
    let mut world = World::new(Kind::Plain);
    let pid_file = world.shared_run().join("nginx.pid");
    let _ended = Ended(pid_file.clone());
    let recipe = recipe(&world);
    let good = config(&world, "");
    let files = |config: &str, page: &str| {
        [
            ("towline.toml", recipe.clone()),
            ("bin/start", START.to_owned()),
            ("nginx.conf", config.to_owned()),
            ("public/index.html", page.to_owned()),
        ]
    };
    let commit = |world: &mut World, config: &str, page: &str| {
        let files = files(config, page);
        let files: Vec<(&str, &str)> =
            files.iter().map(|(path, text)| (*path, text.as_str())).collect();
        world.commit_files(&files)
    };
    let first = commit(&mut world, &good, "one");
    world.begin(&first);
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let moved = config(&world, "location = /moved { return 200 here; }");
    let second = commit(&mut world, &moved, "two");
    let status = world.deploy(&second);
    assert_eq!(status["evidence"], "served", "{status:#}");
    assert_eq!(world.get("/index.html").as_deref(), Some("two"));
    assert_eq!(world.get("/moved").as_deref(), Some("here"), "its configuration is the new one");
    assert_eq!(world.done(&second), ["reloaded"]);

    let closed = config(&world, "location = /index.html { return 503; }")
        .replace("alias .towline-revision;", "return 503;");
    let bad = commit(&mut world, &closed, "three");
    let failure = world.fail(&bad);
    assert_eq!(failure["cause"], "unhealthy", "{failure}");
    world.host.await_serving(&second);
    assert_eq!(world.get("/moved").as_deref(), Some("here"));
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), pid, "reloads did, there and back");
}
