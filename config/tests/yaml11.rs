//! A file that a YAML 1.1 tool has read and written again means the same.
//!
//! Two witnesses: a file that PyYAML wrote, kept here, and PyYAML itself, run on every file of these tests.
//! The tool is not optional: without PyYAML the test makes an environment that has it, or fails.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use evenkeel_config::{Environment, parse};

const FULL: &str = include_str!("data/full.yaml");

/// `yaml.safe_dump(yaml.safe_load(full))` by PyYAML 6.0.3.
const FULL_REWRITTEN: &str = include_str!("data/full.rewritten.yaml");

fn load(text: &str) -> evenkeel_config::settings::Settings {
    match parse(text, "full.yaml", &Environment::named("host-a")) {
        Ok(loaded) => loaded.settings,
        Err(problems) => panic!("{problems}\n{text}"),
    }
}

#[test]
fn what_a_tool_wrote_means_the_same() {
    assert_ne!(FULL, FULL_REWRITTEN);
    assert!(FULL_REWRITTEN.contains("mode: false"), "the tool has read `off` as YAML 1.1 does");
    assert_eq!(load(FULL), load(FULL_REWRITTEN));
}

#[test]
fn what_the_tool_writes_today_means_the_same() {
    let python = python();
    let rewritten = rewrite(&python, FULL);
    assert!(rewritten.contains("mode: false"), "{rewritten}");
    assert_eq!(load(FULL), load(&rewritten));

    // What `evenkeel check --print` prints goes through the same tools.
    let effective = load("services: [{name: a, address: '127.0.0.1:1', tags: ['on', '1.0'], meta: {\"12:30\": '0o7'}}]")
        .to_effective_yaml();
    assert_eq!(load(&effective), load(&rewrite(&python, &effective)));
}

/// Each value is either refused, or means the same before and after.
#[test]
fn no_value_changes_its_meaning() {
    let values = [
        "1",
        "1_000",
        "0755",
        "0o17",
        "0x1f",
        "0b11",
        "-1",
        "+1",
        "1.0",
        "2.10",
        "1e3",
        "1.5e+3",
        ".5",
        ".inf",
        "9101:22",
        "12:30",
        "1:02:03.5",
        "true",
        "True",
        "yes",
        "no",
        "on",
        "off",
        "Off",
        "y",
        "n",
        "~",
        "null",
        "2024-01-02",
        "2024-1-2",
        "2024-01-02 03:04:05",
        "v2",
        "p95",
        "1s",
        "5%",
        "64KiB",
        "none",
        "10.0.0.5",
        "=",
        "1__0",
        "0",
        "00",
        "08",
        "1.",
        "-0",
        "1.2.3",
        "0.1",
        "190:20:30",
    ];
    let places = [
        "services: [{name: a, address: '127.0.0.1:1', tags: [VALUE]}]",
        "services: [{name: a, address: '127.0.0.1:1', meta: {key: VALUE}}]",
        "services: [{name: a, address: '127.0.0.1:1', meta: {VALUE: text}}]",
        "services: [{name: VALUE, address: '127.0.0.1:1'}]",
        "node: {zone: VALUE}",
        "node: {name: VALUE}",
        "node: {data_dir: VALUE}",
        "workers: VALUE",
        "mesh: {insecure: VALUE}",
        "mesh: {name: VALUE}",
        "log: {access: VALUE}",
        "policy: {timeout: VALUE}",
        "policy: {panic: VALUE}",
        "policy: {hedge: {mode: VALUE, after: p50}}",
        "policy: {hedge: {after: VALUE}}",
        "policy: {retry: {max: VALUE}}",
        "policy: {retry: {when: [VALUE]}}",
        "policy: {repeat: {key_header: VALUE}}",
        "limits: {buffers: VALUE, members: 5}",
        "limits: {members: VALUE}",
        "ratelimit: {resources: [{match: a, capacity: VALUE}]}",
        "ratelimit: {resources: [{match: a, capacity: 1, safe: VALUE}]}",
        "ratelimit: {resources: [{match: a, capacity: 1, floors: [{priority: VALUE, share: 1%}]}]}",
        "ratelimit: {resources: [{match: VALUE, capacity: 1}]}",
    ];
    let env = Environment::named("host-a");
    let cases =
        places.iter().flat_map(|place| values.iter().map(|value| place.replace("VALUE", value)));
    let taken: Vec<_> = cases
        .filter_map(|text| Some((parse(&text, "t.yaml", &env).ok()?.settings, text)))
        .collect();
    assert!(taken.len() > 100, "{} of the values are taken", taken.len());

    // All of them as documents of one stream, so that the tool starts once.
    let stream: String = taken.iter().map(|(_, text)| format!("---\n{text}\n")).collect();
    let rewritten = rewrite(&python(), &stream);
    let documents: Vec<&str> = rewritten.split("---\n").skip(1).collect();
    assert_eq!(documents.len(), taken.len());
    for ((settings, text), document) in taken.iter().zip(documents) {
        assert_eq!(&load(document), settings, "{text} became {document}");
    }
}

/// Every document of `text` read and written again.
fn rewrite(python: &Path, text: &str) -> String {
    let program = "import sys, yaml\n\
                   documents = yaml.safe_load_all(sys.stdin.buffer.read())\n\
                   sys.stdout.buffer.write(yaml.safe_dump_all(documents, explicit_start=True, encoding='utf-8'))";
    let mut child = Command::new(python)
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("python3 reads");
    let output = child.wait_with_output().expect("python3 ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A Python that has PyYAML: the system's, else one made below the target directory.
fn python() -> PathBuf {
    let has_yaml = |python: &Path| {
        let found = Command::new(python).args(["-c", "import yaml"]).stderr(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    };
    let system = PathBuf::from("python3");
    if has_yaml(&system) {
        return system;
    }
    // One for each test process: two of them may run at once.
    let home =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pyyaml-{}", std::process::id()));
    let python = home.join("bin/python3");
    static MADE: std::sync::Once = std::sync::Once::new();
    MADE.call_once(|| {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&home).status();
        assert!(
            made.is_ok_and(|status| status.success()),
            "install python3-yaml, or python3-venv to have it made"
        );
        let installed =
            Command::new(&python).args(["-m", "pip", "install", "--quiet", "pyyaml"]).status();
        assert!(
            installed.is_ok_and(|status| status.success()),
            "PyYAML cannot be installed: install python3-yaml"
        );
    });
    assert!(has_yaml(&python), "{} has no PyYAML", python.display());
    python
}
