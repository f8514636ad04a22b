//! What `make demo` shows is true: the demo's own figures, read by a program.

use std::process::Command;

use evenkeel_tests::process::{Watchdog, program};
use serde_json::Value;

#[test]
fn the_demo_ends_with_one_object_that_keeps_the_promise() {
    let _watchdog = Watchdog::start(std::time::Duration::from_secs(120));
    let out = Command::new(program("evenkeel"))
        .args(["demo", "--seconds", "10", "--json"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    let last: Value = serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap();
    let arms = last["arms"].as_array().unwrap();
    let names: Vec<&str> = arms.iter().filter_map(|arm| arm["name"].as_str()).collect();
    assert_eq!(names, ["round_robin", "round_robin_retry", "p2c", "evenkeel"]);
    for arm in arms {
        for figure in ["p50_ms", "p99_ms", "p999_ms", "failed", "extra", "cpu_us"] {
            assert!(arm[figure].is_number(), "{figure} of {arm}");
        }
    }
    let ours = &arms[3];
    assert_eq!(ours["failed"], 0, "no request failed, although a host was killed: {ours}");
    let posts = &last["posts"];
    assert!(posts["sent"].as_u64().unwrap() > 0, "{posts}");
    assert_eq!(posts["twice"], 0, "{posts}");
    let (ok, once) = (posts["ok"].as_u64().unwrap(), posts["once"].as_u64().unwrap());
    assert!(ok <= once, "every success was executed: {posts}");
}
